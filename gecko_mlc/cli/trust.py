"""`trust`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc.cli.terminal import console
from gecko_mlc.formats.errors import GeckoError


def trust(
    what: Annotated[
        Path | None,
        typer.Argument(metavar="[LIBRARY_OR_FOLDER]", help="A library, or a model folder with some; by default all."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no longer.")] = False,
) -> None:
    """Trust a library that came with a model: it is native code, and runs as you do. Without one, list what is trusted.

    What this machine compiled is trusted already, and what --model-lib names needs no trust.

    Example: gecko-mlc trust dist/my-gecko-q4f16_1-MLC
    """
    from gecko_mlc import trust as core
    from gecko_mlc.models import located

    if what is None:
        if remove:
            raise GeckoError("--remove: name the library that is to be trusted no longer")
        for known in core.trusted_libraries():
            print(f"{known.sha256}  {known.path}")
        return
    path = located(what)
    if remove:
        if not sum(core.distrust(library) for library in _libraries(path)):
            raise GeckoError(f"{path}: not trusted before")
        console.print(f"{path} is trusted no longer", markup=False)
        return
    from gecko_mlc.formats.library import read_metadata

    described = {library: read_metadata(library).target for library in _libraries(path)}
    for library, target in described.items():
        console.print(f"trusted: {core.trust(library)}  {library}, for {target.kind} {target.triple}", markup=False)


def _libraries(path: Path) -> list[Path]:
    """The library at `path`, or those in the folder `path` that would be loaded."""
    from gecko_mlc.cache import library_name
    from gecko_mlc.targets import targets

    if not path.is_dir():
        return [path]
    there = [path / library_name(target.name) for target in targets() if (path / library_name(target.name)).exists()]
    if not there:
        raise GeckoError(f"{path}: no library in this folder")
    return there
