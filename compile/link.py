"""Linking object files into shared libraries, for this machine and others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from tvm.target import codegen


def linker(triple: str) -> Callable[..., None]:
    """A function (output, objects, *, options) that links a shared library for the LLVM `triple`.

    A compiler found on this machine links for itself; Zig's, from PyPI, for it and for every other one.
    Objects may be C sources. Raises `RuntimeError` naming both when neither is there.
    """
    native = triple == codegen.llvm_get_system_triple() or _same_platform(triple)
    if native and (compiler := os.environ.get("CC") or shutil.which("cc") or shutil.which("clang")):
        command = [compiler]
    elif importlib.util.find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "cc", "-target", _zig_target(triple)]
    else:
        raise RuntimeError(
            f"nothing to link for {triple} with: install "
            + ("a C compiler (gcc or clang), or " if native else "")
            + "Zig (pip install ziglang)"
        )

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: object) -> None:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
            done = subprocess.run(
                [*command, "-shared", "-fPIC", "-O2", "-pthread", "-o", output, *objects, *(options or ()), "-lm"],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} could not link {output}:\n{done.stderr}")

    return link


def _same_platform(triple: str) -> bool:
    native = codegen.llvm_get_system_triple()
    return triple.split("-")[0] == native.split("-")[0] and "linux" in triple and "linux" in native


def _zig_target(triple: str) -> str:
    """Zig leaves the vendor out of a triple: x86_64-unknown-linux-gnu is x86_64-linux-gnu."""
    parts = triple.split("-")
    return "-".join([parts[0], *parts[-2:]]) if len(parts) > 3 else triple
