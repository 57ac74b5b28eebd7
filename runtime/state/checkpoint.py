"""Checkpoints: a slot's state as it was, kept at the price of what has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gecko_mlc.formats.library import StateTensor


class Checkpoint:
    """A slot's state when this was made, at `position`.

    Nothing is copied before a function changes it: `kept` are those tensors of which that is so. Keys and values are
    written behind the chunk's tokens so far, where nothing reads before the position gets there; only the next chunk's
    take the place of what was read. So they change at a chunk's end.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.kept: dict[str, Any] = {}

    def before(self, function: str, state: Iterable[StateTensor], keep: Callable[[StateTensor], Any]) -> None:
        """Have `keep` copy what `function` is about to change, and nothing changed before."""
        for spec in state:
            if function in spec.changed_by and spec.name not in self.kept:
                self.kept[spec.name] = keep(spec)


class Saved(NamedTuple):
    """All of a slot's state, in the host's memory."""

    position: int
    tensors: Mapping[str, np.ndarray]
    checkpoint: Checkpoint | None
