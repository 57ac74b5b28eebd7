"""The life of slots on a GPU."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.state import slots
from gecko_mlc.tir_kernels.phase import Phase

SLOTS = 40


def positions() -> np.ndarray:
    return np.arange(2 * SLOTS, dtype=np.int32).reshape(SLOTS, 2)


def test_advance() -> None:
    tokens, position, expected = np.zeros(35, np.int32), positions(), positions()
    launch_cuda(slots.advance(Phase.PREFILL, SLOTS), tokens, ints(1), position)
    expected[1, 1] += 35
    np.testing.assert_array_equal(position, expected)
    named = np.arange(SLOTS)[::-1][:35].astype(np.int32)
    launch_cuda(slots.advance(Phase.DECODE, SLOTS), tokens, named, position)
    expected[named, 1] += 1
    np.testing.assert_array_equal(position, expected)


def test_next_chunk() -> None:
    position, expected = positions(), positions()
    named = np.delete(np.arange(SLOTS), [3, 20]).astype(np.int32)
    launch_cuda(slots.next_chunk(SLOTS), named, position)
    expected[named] = expected[named] * [1, 0] + [1, 0]
    np.testing.assert_array_equal(position, expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "value"),
    [
        ((), "int32", 0.0),
        ((3, 5), "float32", -math.inf),
        ((2, 4098), "float32", 0.0),
        ((7, 1236), "float16", 0.0),
        ((2, 16392), "bfloat16", 0.0),
        ((9,), "float16", 0.0),
        ((2, 40), "int8", 0.0),
        ((2, 21), "int8", 0.0),
    ],
)
def test_copy_and_fill(shape: tuple[int, ...], dtype: str, value: float) -> None:
    rng = np.random.default_rng(0)
    tensor = rng.integers(0, 100, (4, *shape)).astype(dtype)
    expected = tensor.copy()
    launch_cuda(slots.copy(4, shape, dtype), ints(3, 1), tensor)
    expected[1] = expected[3]
    np.testing.assert_array_equal(tensor, expected)
    launch_cuda(slots.fill(4, shape, dtype, value), ints(2, 0), tensor)
    expected[[2, 0]] = value
    np.testing.assert_array_equal(tensor, expected)
