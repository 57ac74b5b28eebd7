"""Opening a compiled library: it is refused before any kernel runs if it does not fit."""

from __future__ import annotations

from pathlib import Path

from gecko_mlc.formats.library import Metadata, read_metadata
from gecko_mlc.runtime.players.player import Player
from gecko_mlc.targets import find


class Library:
    """A loaded library: its `metadata`, and the `player` of its target that opened it.

    It is native code: that it may be loaded is for the caller to know. Raises `GeckoError` for a file that is no
    library, or one of another ABI or TVM, or that this machine does not run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = check_library(path)
        self.player: Player = find(self.metadata.target.kind).player(path, self.metadata)


def check_library(path: Path) -> Metadata:
    """The metadata of a library that can run on this machine, as far as can be told without loading it.

    Raises `GeckoError` for a file that is no library, or one of another ABI or TVM, or that this machine does not run.
    """
    metadata = read_metadata(path)
    find(metadata.target.kind).player.check(path, metadata)
    return metadata
