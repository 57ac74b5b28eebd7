"""What the NVIDIA driver says of this machine's GPUs: no CUDA runtime library is needed to ask, nor TVM."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from gecko_mlc.cuda_toolkit import MINIMUM_DRIVER, RUNTIME_LIBRARY, find_library
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.search_path import load_library

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

# What the driver was told to begin in: it knows nothing of children.
_process: int | None = None


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports; None without a driver."""
    version = ctypes.c_int()
    driver = _driver()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def capability(index: int = 0) -> int | None:
    """The compute capability of a GPU, as 80 for 8.0; None when there is no such GPU."""
    opened = _device(index)
    if opened is None:
        return None
    driver, device = opened
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return 10 * major.value + minor.value


def usable(index: int = 0) -> int | None:
    """The compute capability of a GPU whose driver runs libraries; None when there is no such GPU."""
    return capability(index) if (driver_version() or (0, 0)) >= MINIMUM_DRIVER else None


def name(index: int = 0) -> str | None:
    """A GPU's name as its maker gives it; None when there is no such GPU."""
    opened = _device(index)
    if opened is None:
        return None
    driver, device = opened
    buffer = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(buffer, len(buffer), device)
    return buffer.value.decode(errors="replace")


def find_cudart() -> str | None:
    """The CUDA runtime library that TVM's CUDA backend is linked to: a path, or its name where the linker finds it."""
    return find_library(RUNTIME_LIBRARY)


def _driver() -> Any:
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return None
    # What stands in for the driver in a process that compiles has none of this.
    return driver if hasattr(driver, "cuInit") else None


def _device(index: int) -> tuple[Any, ctypes.c_int] | None:
    global _process
    driver, device = _driver(), ctypes.c_int()
    if driver is None:
        return None
    if _process not in (None, os.getpid()):
        raise GeckoError(
            "this process was forked after its parent had looked for GPUs, and can use none; start processes by the"
            " method spawn, or choose the device cpu"
        )
    if driver.cuInit(0):
        return None
    _process = os.getpid()
    return None if driver.cuDeviceGet(ctypes.byref(device), index) else (driver, device)
