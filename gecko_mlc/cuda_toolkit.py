"""Where CUDA's libraries are: in an installed toolkit, or in NVIDIA's packages from PyPI."""

from __future__ import annotations

import os
from pathlib import Path

from gecko_mlc.search_path import load_library, package_folders, which

# What TVM's CUDA backend is linked to, and the CUDA version that this asks of the driver.
RUNTIME_LIBRARY = "libcudart.so.13"
MINIMUM_DRIVER = (13, 0)
_PYPI_FOLDER = "cu13"


def toolkits() -> list[Path]:
    """Folders that hold a CUDA toolkit or parts of one, the most explicit first."""
    folders = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := which("nvcc"):
        folders.append(Path(nvcc).resolve().parents[1])
    folders += [folder / _PYPI_FOLDER for folder in package_folders("nvidia")]
    folders.append(Path("/usr/local/cuda"))
    return [folder for folder in folders if folder.is_dir()]


def find_library(name: str) -> str | None:
    """A shared library of CUDA's: the path in a toolkit, or its bare name where the linker finds it."""
    for folder in toolkits():
        for part in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (folder / part / name).is_file():
                return str(folder / part / name)
    try:
        load_library(name)
    except OSError:
        return None
    return name
