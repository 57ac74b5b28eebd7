"""Checkpoints: a slot's state as it was, kept at the price of what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Checkpoint:
    """A slot's state when this was made, at `position`.

    Nothing is copied before a function changes it: `kept` are those tensors of which that is so. Keys and values are
    written behind the chunk's tokens so far, where nothing reads before the position gets there; only the next chunk's
    take the place of what was read. So they change at a chunk's end.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.called: set[str] = set()  # The functions since.
        self.kept: dict[str, Any] = {}


class Saved(NamedTuple):
    """All of a slot's state, in the host's memory."""

    position: int
    tensors: Mapping[str, np.ndarray]
    checkpoint: Checkpoint | None
