"""A player without a device: tensors are NumPy's, and functions are Python's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gecko_mlc.formats.library import PARAMETRIC_FUNCTIONS, Metadata, TensorSpec
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.runtime.players.player import Player, Tensor
from gecko_mlc.runtime.state.arena import arena


class NumPyPlayer(Player):
    """Plays `functions` by name, which take arrays: inputs, state, parameters. Calls are done when they return."""

    asynchronous, on_host = False, True

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = functions

    @classmethod
    def usable(cls) -> bool:
        return True

    @classmethod
    def device_name(cls) -> str | None:
        return "NumPy"

    @classmethod
    def machine(cls) -> list[Any]:
        return []

    @classmethod
    def check(cls, path: Path, metadata: Metadata) -> None:
        pass

    def allocate(self, tensors: Sequence[TensorSpec]) -> list[Tensor]:
        return [self.view(piece, t.shape, t.dtype) for piece, t in zip(arena(tensors), tensors, strict=True)]

    def view(self, tensor: Tensor, shape: tuple[int, ...], dtype: str, offset: int = 0) -> Tensor:
        size = int(np.prod(shape, dtype=np.int64)) * NUMPY_DTYPES[dtype].itemsize
        return tensor.reshape(-1).view(np.uint8)[offset : offset + size].view(NUMPY_DTYPES[dtype]).reshape(shape)

    def upload(self, tensor: Tensor, array: np.ndarray) -> None:
        assert tensor.dtype == array.dtype
        tensor[...] = array.reshape(tensor.shape)

    def download(self, tensor: Tensor) -> np.ndarray:
        return np.array(tensor)

    def fetch(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        value = self.download(tensor)
        return lambda: value

    def copy(self, pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
        for source, destination in pairs:
            destination[...] = source

    def bind(self, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self._state, self._parameters = tuple(state), tuple(parameters)

    def play(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        for name in functions:
            parameters = self._parameters if name in PARAMETRIC_FUNCTIONS else ()
            self._functions[name](*inputs, *self._state, *parameters)

    def replay(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        self.play(functions, inputs)

    def synchronize(self) -> None:
        pass
