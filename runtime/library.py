"""Opening a compiled library: it is refused before any kernel runs if it does not fit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import Metadata, TargetSpec, functions_of, read_metadata
from gecko_mlc.runtime.devices import host, nvidia
from gecko_mlc.runtime.players import tvm_runtime
from gecko_mlc.runtime.players.cuda_graph import Stream, stream_of

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


class Library:
    """A loaded library: `metadata`, `functions` by name, the `device` they run on and, of a GPU, its `stream`.

    Raises `GeckoError` for a file that is no library, or one of another ABI, architecture, CPU or GPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = check_library(path)
        tvm = tvm_runtime.load()
        from tvm.runtime.vm import VirtualMachine

        self.device = tvm.runtime.device(self.metadata.target.kind, 0)
        self.stream: Stream | None = None
        if self.metadata.target.kind == "cuda":
            _check_gpu(path, self.metadata.target)
            self.stream = stream_of(self.device, tvm_runtime.load_cuda())
        try:
            self._machine = VirtualMachine(tvm.runtime.load_module(str(path.resolve())), self.device)
        except Exception as error:  # TVM and the dynamic linker raise many kinds.
            raise GeckoError(f"{path}: not a library of gecko-mlc: {str(error).strip().splitlines()[-1]}") from None
        names = functions_of(self.metadata.target.kind)
        self.functions: dict[str, Callable[..., Any]] = {name: self._machine[name] for name in names}


def check_library(path: Path) -> Metadata:
    """The metadata of a library that can run on this machine, as far as can be told without loading it.

    Raises `GeckoError` for a file that is no library, or one of another ABI, architecture or CPU.
    """
    _check_architecture(path)
    metadata = read_metadata(path)
    _check_cpu(path, metadata.target)
    return metadata


def _check_architecture(path: Path) -> None:
    """Refuse what the dynamic linker would only call invalid, or crash on."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
    except FileNotFoundError:
        raise GeckoError(f"{path}: no such library; `gecko-mlc compile` makes one") from None
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        raise GeckoError(f"{path}: not a shared library for 64-bit Linux (no ELF header)")
    (code,) = struct.unpack_from("<H", header, 18)
    found, here = _ELF_MACHINES.get(code, f"machine {code}"), host.architecture()
    if found != here:
        raise GeckoError(
            f"{path}: compiled for {found}, this machine is {here}; compile it with --host {here}-linux-gnu"
        )
    # The table of sections is the last thing in the file.
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    if sections + entry_size * entries > size:
        raise GeckoError(f"{path}: {size:,} bytes, the file is damaged or incomplete; compile it again")


def _check_cpu(path: Path, target: TargetSpec) -> None:
    available = host.cpu_features()
    missing = [name for name in target.features if available is not None and name not in available]
    if missing:
        raise GeckoError(
            f"{path}: compiled for {target.mcpu}, but this CPU has no {', '.join(missing)};"
            " compile it on this machine, or with --mcpu x86-64-v3"
        )


def _check_gpu(path: Path, target: TargetSpec) -> None:
    version, capability = nvidia.driver_version(), nvidia.capability()
    if version is None or capability is None:
        raise GeckoError(
            f"{path}: compiled for NVIDIA GPUs, and this machine has none, or no driver (libcuda.so.1);"
            " compile for its CPU with --device cpu"
        )
    if target.minimum_cuda is not None and version < target.minimum_cuda:
        needed, found = (".".join(map(str, v)) for v in (target.minimum_cuda, version))
        raise GeckoError(f"{path}: needs a driver for CUDA {needed}, this one is for CUDA {found}; update the driver")
    if not target.runs_on(capability):
        compiled = ", ".join(f"sm_{a}" for a in target.architectures)
        raise GeckoError(
            f"{path}: compiled for {compiled}, this GPU ({nvidia.name()}) is sm_{capability};"
            f" compile it with --arch sm_{capability}"
        )
