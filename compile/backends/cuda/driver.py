"""TVM's CUDA backend in a process that compiles, with a GPU's driver or without one.

Without its library, TVM would put CUDA source into a model library, to be compiled where that runs. It calls
nothing of the driver to compile, but has to find its names: where there is no driver, a library with empty
functions stands in.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm
import tvm_ffi
from tvm.target import codegen

from gecko_mlc.compile.backends.cuda.compiler import Compiler, MachineCode
from gecko_mlc.compile.link import linker
from gecko_mlc.cuda_toolkit import RUNTIME_LIBRARY, find_library
from gecko_mlc.formats.library import CUDATarget
from gecko_mlc.search_path import load_library

_FACTORY = "ffi.Module.create.cuda"
_CALLBACK = "tvm_callback_cuda_compile"
# What libtvm_runtime_cuda.so takes from the driver.
_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)


def load_backend() -> None:
    """Make TVM able to hold machine code. Raises `RuntimeError` naming what is missing."""
    if _registered():
        return
    runtime = find_library(RUNTIME_LIBRARY)
    if runtime is None:
        raise RuntimeError(f"no CUDA runtime library ({RUNTIME_LIBRARY}): pip install nvidia-cuda-runtime")
    load_library(runtime, everywhere=True)
    try:
        load_library("libcuda.so.1", everywhere=True)
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            write_stand_in(Path(folder) / "driver.so")
            # It stays loaded when the file has gone.
            ctypes.CDLL(f"{folder}/driver.so", mode=ctypes.RTLD_GLOBAL)
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(f"TVM's CUDA backend does not load: {error}") from None
    if not _registered():
        raise RuntimeError(f"{library} registers no {_FACTORY}: not the TVM this was made for")


def _registered() -> bool:
    return tvm_ffi.get_global_func(_FACTORY, allow_missing=True) is not None


def write_stand_in(library: Path) -> None:
    """A shared library with the names that TVM's CUDA backend takes from the driver, for processes without one."""
    link = linker(codegen.llvm_get_system_triple())
    source = library.with_suffix(".c")
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in _DRIVER_FUNCTIONS))
    link(str(library), [str(source)], ["-Wl,-soname,libcuda.so.1"])


@contextmanager
def compiling(compiler: Compiler, target: CUDATarget, begin: Callable[[], None]) -> Iterator[list[MachineCode]]:
    """While the block lasts, TVM's CUDA source is compiled for `target`; the list is what was compiled.

    `begin` is called before.
    """
    load_backend()
    before = tvm_ffi.get_global_func(_CALLBACK)
    done: list[MachineCode] = []

    def callback(source: str) -> bytes:
        begin()
        done.append(compiler.compile(source, target.architectures, target.ptx))
        return done[-1].fatbin

    tvm_ffi.register_global_func(_CALLBACK, callback, override=True)
    try:
        yield done
    finally:
        tvm_ffi.register_global_func(_CALLBACK, before, override=True)
