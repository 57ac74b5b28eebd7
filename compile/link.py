"""Linking object files into shared libraries, for this machine and others."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from tvm.target import codegen

from gecko_mlc.compile.hosts import host_triple
from gecko_mlc.search_path import environment, package_folders, which


def linker(triple: str) -> Callable[..., None]:
    """A function (output, objects, *, options) that links a shared library for the LLVM `triple`.

    A compiler found on this machine links for itself; Zig's, from PyPI, for it and for every other one.
    Objects may be C sources. Raises `RuntimeError` naming both when neither is there.
    """
    here = codegen.llvm_get_system_triple()
    native = triple == here or host_triple(triple) == host_triple(here)
    if native and (compiler := os.environ.get("CC") or which("cc") or which("clang")):
        command = [compiler]
    elif zig := package_folders("ziglang"):
        command = [str(zig[0] / "zig"), "cc", "-target", host_triple(triple)]
    else:
        raise RuntimeError(
            f"nothing to link for {triple} with: install "
            + ("a C compiler (gcc or clang), or " if native else "")
            + "Zig (pip install ziglang)"
        )

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: object) -> None:
        files = [os.path.abspath(file) for file in (output, *objects)]
        # A folder of its own is the current one: linkers look there for libraries, too.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [*command, "-shared", "-fPIC", "-O2", "-pthread", "-o", *files, *(options or ()), "-lm"],
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment(LC_ALL="C", ZIG_GLOBAL_CACHE_DIR=folder, ZIG_LOCAL_CACHE_DIR=folder),
                check=False,
            )
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), output)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} could not link {output}:\n{done.stderr}")

    return link
