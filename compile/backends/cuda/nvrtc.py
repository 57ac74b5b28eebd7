"""NVIDIA's compiler as a library (NVRTC), and the one that joins machine code of several architectures (nvFatbin).

`python -m gecko_mlc.compile.backends.cuda.nvrtc` compiles one program in a process of its own: the PTX of a process
that has compiled before, or compiles two at once, differs from time to time.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gecko_mlc.search_path import environment, load_library, python


class Program(NamedTuple):
    """What one source became: machine code (none for a virtual architecture), PTX, and the compiler's log."""

    cubin: bytes
    ptx: bytes
    log: str


def compile_program(library: str, source: str, options: Sequence[str]) -> Program:
    """Compile CUDA source with the NVRTC at the path `library`. Raises `RuntimeError` with the compiler's log."""
    with tempfile.TemporaryDirectory() as folder:
        # Relative names, for what ends up in the output.
        (Path(folder) / "kernels.cu").write_text(source)
        done = subprocess.run(
            python(__name__, library, *options),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout)
        cubin, ptx = ((Path(folder) / f"kernels.{kind}").read_bytes() for kind in ("cubin", "ptx"))
        return Program(cubin, ptx, done.stdout)


def join(library: str, images: Iterable[tuple[str, str, bytes]]) -> bytes:
    """A fatbin of (CUBIN or PTX, architecture, bytes), with the nvFatbin at the path `library`."""
    nvfatbin, handle, size = load_library(library), ctypes.c_void_p(), ctypes.c_size_t()
    options = (ctypes.c_char_p * 1)(b"-64")
    _check(nvfatbin.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(1)), "nvFatbin")
    try:
        for kind, architecture, image in images:
            arguments = [handle, image, ctypes.c_size_t(len(image)), architecture.encode(), b"kernels"]
            if kind == "PTX":
                _check(nvfatbin.nvFatbinAddPTX(*arguments, None), "nvFatbin")
            else:
                _check(nvfatbin.nvFatbinAddCubin(*arguments), "nvFatbin")
        _check(nvfatbin.nvFatbinSize(handle, ctypes.byref(size)), "nvFatbin")
        buffer = ctypes.create_string_buffer(size.value)
        _check(nvfatbin.nvFatbinGet(handle, buffer), "nvFatbin")
        return buffer.raw
    finally:
        nvfatbin.nvFatbinDestroy(ctypes.byref(handle))


def _main(library: str, *options: str) -> None:
    """Compile ./kernels.cu to ./kernels.cubin and ./kernels.ptx; the log goes to standard output."""
    # NVRTC opens its other half by name, and finds it only when it is there already.
    for builtins in sorted(Path(library).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))
    nvrtc, program = load_library(library), ctypes.c_void_p()
    # It has no use for the driver's header.
    source = Path("kernels.cu").read_bytes().replace(b"#include <cuda.h>", b"")
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None), "NVRTC")
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    print(_output(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace"))
    if status:
        sys.exit(1)
    for kind in ("CUBIN", "PTX"):
        Path(f"kernels.{kind.lower()}").write_bytes(_output(nvrtc, kind, program))


def _output(nvrtc: Any, kind: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)), "NVRTC")
    buffer = ctypes.create_string_buffer(size.value)
    if size.value:
        _check(getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer), "NVRTC")
    return buffer.raw


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} failed with status {status}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
