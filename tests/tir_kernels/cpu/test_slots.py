"""The life of slots."""

from __future__ import annotations

import math

import numpy as np
from support.launch import ints, launch

from gecko_mlc.tir_kernels.cpu import slots
from gecko_mlc.tir_kernels.phase import Phase


def test_positions() -> None:
    position = ints(1, 2, 3, 4, 5, 6).reshape(3, 2)
    tokens = ints(0, 0, 0)
    after = launch(slots.advance(Phase.PREFILL, 3), tokens, ints(1), position)[2]
    assert after.tolist() == [[1, 2], [3, 7], [5, 6]]
    after = launch(slots.advance(Phase.DECODE, 3), tokens[:2], ints(2, 0), position)[2]
    assert after.tolist() == [[1, 3], [3, 4], [5, 7]]
    assert launch(slots.next_chunk(3), ints(1), position)[1].tolist() == [[1, 2], [4, 0], [5, 6]]


def test_copy_and_fill() -> None:
    tensor = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    copied = launch(slots.copy(3, (2, 3), "float32"), ints(1, 0), tensor)[1]
    np.testing.assert_array_equal(copied, tensor[[1, 1, 2]])
    filled = launch(slots.fill(3, (2, 3), "float32", -math.inf), ints(1, 0), tensor)[1]
    assert np.isneginf(filled[:2]).all()
    np.testing.assert_array_equal(filled[2], tensor[2])
