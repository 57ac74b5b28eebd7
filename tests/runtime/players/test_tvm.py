"""The CPU's player: memory, and what it says of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.models import small_config

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.players.player import Player


@pytest.fixture
def player(compiled: Callable[..., Path]) -> Player:
    return Library(compiled(small_config())).player


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_memory(dtype: str, player: Player) -> None:
    """Tensors, parts of them, and copies, of every dtype."""
    first, second = player.allocate([TensorSpec(name=name, shape=(4, 6), dtype=dtype) for name in "ab"])
    values = np.arange(24).reshape(4, 6).astype(NUMPY_DTYPES[dtype])
    player.upload(first, values)
    player.copy(((first, second),))
    row = player.view(first, (6,), dtype, values[:2].nbytes)
    player.upload(row, values[0])
    np.testing.assert_array_equal(player.download(second).astype(np.float64), values.astype(np.float64))
    expected = values[[0, 1, 0, 3]].astype(np.float64)
    np.testing.assert_array_equal(player.download(first).astype(np.float64), expected)


def test_a_fetched_tensor_is_as_it_was(player: Player) -> None:
    (tensor,) = player.allocate([TensorSpec(name="token", shape=(2,), dtype="int32")])
    player.upload(tensor, np.array([3, 4], np.int32))
    read = player.fetch(tensor)
    player.upload(tensor, np.array([5, 6], np.int32))
    assert read().tolist() == [3, 4]


def test_calls_are_done_when_they_return(player: Player) -> None:
    assert (player.asynchronous, player.on_host) == (False, True)
    assert type(player).usable()
    assert type(player).device_name()
