"""Opening a compiled library: it is refused before any kernel runs if it does not fit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gecko_mlc.runtime import machine, tvm_runtime
from gecko_mlc.runtime.errors import GeckoError
from pydantic import ValidationError

from gecko_mlc.abi import ABI_VERSION, FUNCTIONS, Metadata

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


class Library:
    """A loaded library: `metadata`, `functions` by name, and the `device` they run on.

    Raises `GeckoError` for a file that is no library, or one of another ABI, architecture or CPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_architecture(path)
        tvm = tvm_runtime.load()
        from tvm.runtime.vm import VirtualMachine

        self.device = tvm.runtime.device("cpu", 0)
        try:
            self._machine = VirtualMachine(tvm.runtime.load_module(str(path.resolve())), self.device)
            text = self._machine["_metadata"]()
        except Exception as error:  # TVM and the dynamic linker raise many kinds.
            raise GeckoError(f"{path}: not a library of gecko-mlc: {str(error).strip().splitlines()[-1]}") from None
        self.metadata = _parse(path, str(text))
        self.functions: dict[str, Callable[..., Any]] = {name: self._machine[name] for name in FUNCTIONS}


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
    found, here = _ELF_MACHINES.get(code, f"machine {code}"), machine.architecture()
    if found != here:
        raise GeckoError(
            f"{path}: compiled for {found}, this machine is {here}; compile it with --host {here}-linux-gnu"
        )
    # The table of sections is the last thing in the file.
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    if sections + entry_size * entries > size:
        raise GeckoError(f"{path}: {size:,} bytes, the file is damaged or incomplete; compile it again")


def _parse(path: Path, text: str) -> Metadata:
    try:
        metadata = Metadata.model_validate_json(text)
    except ValidationError as error:
        version = error.title
        raise GeckoError(f"{path}: its metadata cannot be read ({version}); compile it again") from None
    if metadata.abi_version != ABI_VERSION:
        raise GeckoError(f"{path}: ABI version {metadata.abi_version}, expected {ABI_VERSION}; compile it again")
    available = machine.cpu_features()
    if available is not None:
        missing = [name for name in metadata.target.features if name not in available]
        if missing:
            raise GeckoError(
                f"{path}: compiled for {metadata.target.mcpu}, but this CPU has no {', '.join(missing)};"
                " compile it on this machine, or with --mcpu x86-64-v3"
            )
    return metadata
