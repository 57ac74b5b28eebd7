"""What a checkpoint is: tensors by name, read one at a time."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class TensorType(NamedTuple):
    """A tensor's shape and its dtype as NumPy or ml_dtypes has it."""

    shape: tuple[int, ...]
    dtype: Any


class Checkpoint(ABC):
    """Tensors by name: `tensors` tells what is there, `read` returns one as a NumPy array.

    `identity` tells a checkpoint from others: by its files' names, sizes and times of change; one in memory is like no
    other.
    """

    def __init__(self, tensors: Mapping[str, TensorType], identity: str | None = None) -> None:
        self.tensors = tensors
        self.identity = identity or uuid.uuid4().hex

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """The tensor `name`, in its own dtype."""


class Renamed(Checkpoint):
    """The tensors of another checkpoint that `names` has, by other names: new ones and those that they are there by."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        super().__init__({new: checkpoint.tensors[old] for new, old in names.items()}, checkpoint.identity)
        self._checkpoint, self._names = checkpoint, names

    def read(self, name: str) -> np.ndarray:
        """The tensor as the other checkpoint reads it."""
        return self._checkpoint.read(self._names[name])


def identity_of(files: Iterable[Path]) -> str:
    """The identity of a checkpoint that lies in `files`."""
    states = [(file, file.stat()) for file in files]
    return "\n".join(f"{file.name} {state.st_size} {state.st_mtime_ns}" for file, state in states)
