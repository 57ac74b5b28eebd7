"""What a player is: the class that opens libraries of a target, owns their memory and makes their calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gecko_mlc.formats.library import Metadata, TensorSpec

# A tensor is the player's own; the engine only hands it back.
Tensor = Any


class Player(ABC):
    """An opened library on a device: `Player(path, metadata)`, after `check`, raises `GeckoError` for one that does not
    open. Calls run in the order in which they were issued; `asynchronous` says that they return before they are done.

    The class answers for this machine, and loads nothing for it.
    """

    asynchronous: ClassVar[bool] = True
    # Whether the device is the host: what it can do at most is measured differently.
    on_host: ClassVar[bool] = False
    # Whether a process that is forked can go on with what its parent has loaded.
    survives_fork: ClassVar[bool] = False
    # What a folder that runs elsewhere has to bring: TVM's libraries, packages from PyPI; and what it needs there.
    tvm_libraries: ClassVar[tuple[str, ...]] = ()
    requirements: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = ""
    # Of a player on the host: how many threads its calls have, by default one for each usable core.
    threads: int | None = None

    @abstractmethod
    def __init__(self, path: Path, metadata: Metadata) -> None: ...

    # This machine

    @classmethod
    @abstractmethod
    def usable(cls) -> bool:
        """Whether libraries of the target run here; `rows` tell what is missing."""

    @classmethod
    @abstractmethod
    def device_name(cls) -> str | None:
        """What the device is called; None when there is none."""

    @classmethod
    @abstractmethod
    def machine(cls) -> list[Any]:
        """What a library compiled for this machine is cached by, as JSON."""

    @classmethod
    def installed(cls) -> int | None:
        """The architecture of this machine's device, for targets that are compiled for given ones."""
        return None

    @classmethod
    def rows(cls) -> list[tuple[str, str]]:
        """What `info` tells of the device, names and values."""
        return []

    @classmethod
    @abstractmethod
    def check(cls, path: Path, metadata: Metadata) -> None:
        """Raise `GeckoError` for a library that does not run on this machine, as far as can be told without loading."""

    # Memory

    def free_memory(self) -> int | None:
        """Bytes that may still be allocated; None where that is not known."""
        return None

    @abstractmethod
    def allocate(self, tensors: Sequence[TensorSpec]) -> list[Tensor]:
        """Memory for `tensors`, not set, that does not move. Raises what the system says when there is too little."""

    @abstractmethod
    def view(self, tensor: Tensor, shape: tuple[int, ...], dtype: str, offset: int = 0) -> Tensor:
        """A part of a tensor, `offset` bytes from its beginning."""

    @abstractmethod
    def upload(self, tensor: Tensor, array: np.ndarray) -> None:
        """Set a tensor to an array of its dtype and as many elements."""

    @abstractmethod
    def download(self, tensor: Tensor) -> np.ndarray:
        """A tensor's values after all calls before."""

    @abstractmethod
    def fetch(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """Begin to read a small tensor as it will be after the calls before; what is returned waits for that alone."""

    @abstractmethod
    def copy(self, pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
        """Copy tensors into others of their shapes and dtypes: pairs of source and destination. What comes again is
        given as the same object."""

    # Calls

    @abstractmethod
    def bind(self, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Give the tensors that all calls take, in the order of the metadata."""

    @abstractmethod
    def play(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """Call functions of the library with `inputs` before the state, one after the other."""

    @abstractmethod
    def replay(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """The same, for calls that come again: inputs of the same shapes have the same addresses each time."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all calls are done. Raises `GeckoError` when any of them failed."""
