"""Which libraries may be loaded: they are native code, and a model folder may come from anywhere.

Trust lies outside of the folder: in `trusted.json` of the home folder, which knows what this machine compiled and what
the user trusts, and of a package. Both know libraries by the sha256 of their bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, read_json, validated
from gecko_mlc.home import home_folder, locked, package, writing

TRUSTED = "trusted.json"


class TrustedLibrary(BaseModel):
    """A library by its bytes, and where it was: a path from the folder of the list."""

    sha256: str
    path: Annotated[str, Field(pattern=r"^[^\x00]*$")]


class TrustedLibraries(BaseModel):
    """The list in `trusted.json`."""

    libraries: list[TrustedLibrary]


def sha256(path: Path) -> str:
    """The digest of a file. Raises `GeckoError` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()


def trusted_libraries() -> list[TrustedLibrary]:
    """What the user's list holds; nothing where it is damaged."""
    return _read(home_folder() / TRUSTED)


def is_trusted(library: Path) -> bool:
    """Whether the bytes of a library are trusted."""
    return sha256(library) in {known.sha256 for known in _known()}


def check_trusted(library: Path) -> None:
    """Raise `GeckoError` for a library in a model folder that is damaged, or not trusted, with the ways to go on."""
    # What is trusted is undamaged: its bytes are read once.
    if not is_trusted(library):
        check_undamaged(library)
        raise GeckoError(
            f"{library}: native code that came with the model folder, and not trusted: if you know whose it is, say"
            f" `gecko-mlc trust {library}` or name it with --model-lib; without that file one is compiled here"
        )


def check_undamaged(library: Path) -> None:
    """Raise `GeckoError` for a library that is not what was compiled, or trusted, at its place."""
    if str(library.resolve()) in {known.path for known in _known()} and not is_trusted(library):
        raise GeckoError(
            f"{library}: damaged or replaced: not the bytes that were compiled or trusted here; say"
            f" `gecko-mlc trust {library}` if they should be others",
            "compile it again",
        )


def trust(library: Path, place: Path | None = None) -> str:
    """Add a library to the user's list, as one that is, or will be, at `place`; its sha256."""
    digest, place = sha256(library), (place or library).resolve()
    with locked(TRUSTED), writing():
        entries = [entry for entry in trusted_libraries() if (entry.sha256, entry.path) != (digest, str(place))]
        _write(home_folder() / TRUSTED, [*entries, TrustedLibrary(sha256=digest, path=str(place))])
    return digest


def distrust(library: Path) -> int:
    """Take out of the user's list all entries with the bytes of a library, or its place; how many there were."""
    digest = sha256(library) if library.is_file() else None
    with locked(TRUSTED), writing():
        entries = trusted_libraries()
        kept = [entry for entry in entries if entry.sha256 != digest and entry.path != str(library.resolve())]
        _write(home_folder() / TRUSTED, kept)
    return len(entries) - len(kept)


def write_trusted(file: Path, libraries: Iterable[Path]) -> None:
    """Write a package's list of its own libraries, which are in or below the folder of `file`."""
    _write(file, [TrustedLibrary(sha256=sha256(path), path=str(path.relative_to(file.parent))) for path in libraries])


def _known() -> list[TrustedLibrary]:
    """All that are trusted, with their places in full."""
    folders = [folder for folder in (_home(), package()) if folder is not None]
    return [
        TrustedLibrary(sha256=entry.sha256, path=str((folder / entry.path).resolve()))
        for folder in folders
        for entry in _read(folder / TRUSTED)
    ]


def _home() -> Path | None:
    """The home folder; None where there can be none, which is no reason not to run."""
    try:
        return home_folder()
    except GeckoError:
        return None


def _read(file: Path) -> list[TrustedLibrary]:
    try:
        return validated(TrustedLibraries, read_json(file), file).libraries
    except GeckoError:
        return []


def _write(file: Path, libraries: list[TrustedLibrary]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as opened:
        opened.write(TrustedLibraries(libraries=libraries).model_dump_json(indent=2) + "\n")
