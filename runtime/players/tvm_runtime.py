"""TVM's runtime library alone: it loads in a fraction of the time, and where no compiler is installed."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import Metadata
from gecko_mlc.runtime.devices import nvidia
from gecko_mlc.runtime.interrupts import interrupts_later
from gecko_mlc.search_path import load_library

CUDA_LIBRARY = "libtvm_runtime_cuda.so"

_PACKAGE = "apache-tvm"


def check_version(path: Path, metadata: Metadata) -> None:
    """Refuse what another version of TVM compiled: `GeckoError` with both."""
    try:
        here = version(_PACKAGE)
    except PackageNotFoundError:  # Built from source.
        return
    if metadata.tvm_version != here:
        raise GeckoError(
            f"{path}: compiled by TVM {metadata.tvm_version}, here is TVM {here}; compile it again with `gecko-mlc"
            f" compile`, or pip install {_PACKAGE}=={metadata.tvm_version}"
        )


def load() -> Any:
    """The module `tvm`, without its compiler unless something imported that before."""
    if "tvm" in sys.modules:
        return sys.modules["tvm"]
    variable = "TVM_USE_RUNTIME_LIB"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    # TVM's bindings import PyTorch if they find it, for seconds, to trade tensors; nothing here does.
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        with interrupts_later():
            import tvm
    finally:
        if hide_torch:
            del sys.modules["torch"]
        # Processes started from here may want the compiler.
        if before is None:
            del os.environ[variable]
    # In this mode TVM leaves out its built-in backends, the virtual machine's among them.
    extra = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_extra.so"
    if extra.exists():
        ctypes.CDLL(str(extra), mode=ctypes.RTLD_GLOBAL)
    return tvm


def load_cuda() -> ctypes.CDLL:
    """Make TVM able to run libraries for NVIDIA GPUs; CUDA's runtime library.

    Raises `GeckoError` naming what is missing.
    """
    tvm = load()
    path = nvidia.find_cudart()
    if path is None:
        raise GeckoError(
            "no CUDA 13 runtime library (libcudart.so.13): install CUDA 13, or pip install nvidia-cuda-runtime"
        )
    cudart = load_library(path, everywhere=True)
    backend = Path(tvm.__file__).parent / "lib" / CUDA_LIBRARY
    try:
        ctypes.CDLL(str(backend), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise GeckoError(f"TVM's CUDA backend does not load: {error}") from None
    return cudart
