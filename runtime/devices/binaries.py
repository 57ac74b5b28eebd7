"""Code for this machine's processor: a file whose code cannot run is refused before it is loaded."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import TargetSpec
from gecko_mlc.runtime.devices import host

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def check_architecture(path: Path) -> None:
    """Refuse what the dynamic linker would only call invalid, or crash on: `GeckoError` for a file that is no shared
    library, not all of one, or one for another architecture."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        raise GeckoError(f"{path}: not a shared library for 64-bit Linux (no ELF header)")
    (code,) = struct.unpack_from("<H", header, 18)
    found, here = _ELF_MACHINES.get(code, f"machine {code}"), host.architecture()
    if found != here:
        raise GeckoError(
            f"{path}: compiled for {found}, this machine is {here}", f"compile it with --host {here}-linux-gnu"
        )
    # The table of sections is the last thing in the file.
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    if sections + entry_size * entries > size:
        raise GeckoError(f"{path}: {size:,} bytes, the file is damaged or incomplete", "compile it again")


def check_c_library(path: Path, target: TargetSpec) -> None:
    """Refuse code for systems with musl on one with glibc: it is for others that the dynamic linker looks then."""
    if target.triple.endswith("-musl") and platform.libc_ver()[0] == "glibc":
        raise GeckoError(
            f"{path}: compiled for {target.triple}, this machine has glibc; compile it with --host"
            f" {target.triple.removesuffix('musl')}gnu"
        )


def check_features(path: Path, target: TargetSpec) -> None:
    """Refuse code with instructions that this CPU lacks."""
    available = host.cpu_features()
    missing = [name for name in target.features if available is not None and name not in available]
    if missing:
        raise GeckoError(
            f"{path}: compiled for {target.mcpu}, but this CPU has no {', '.join(missing)}",
            "compile it on this machine, or with --mcpu x86-64-v3",
        )
