"""Rows of the embedding on a GPU against their oracle."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import ints
from support.launch_cuda import launch_cuda
from support.weights import format_of, weights_in_memory

from gecko_mlc.tir_kernels.cuda.state import embedding
from gecko_mlc.tir_kernels.oracles.embedding import oracle


@pytest.mark.parametrize(
    ("dim", "scheme"),
    [
        (7, "q0f32"),
        (1028, "q0f32"),
        (6, "q0f16"),
        (2056, "q0f16"),
        (4104, "q0bf16"),
        (90, "q3f16_1"),
        (2056, "q4f16_1"),
        (33, "q4f32_1"),
        (1028, "q8f16_1"),
    ],
)
def test_rows(dim: int, scheme: str) -> None:
    """Rows that no token names have every bit set: NaN. Where no token was drawn, it is the first row."""
    tokens, weights = ints(3, 10, 0, 3), format_of(scheme)
    stored, weight = weights_in_memory(np.random.default_rng(0), 11, dim, scheme)
    stored.view(np.uint8)[np.setdiff1d(np.arange(11), tokens)] = 255
    expected = oracle(tokens, weight, 2.5)
    x = np.full((4, dim), np.nan, np.float32)
    launch_cuda(embedding.take(11, dim, 2.5, weights), tokens, stored, x)
    np.testing.assert_array_equal(x, expected)
    x[:] = np.nan
    launch_cuda(embedding.take_current(11, dim, 2.5, weights, 5), ints(10, 3, 3, 99, -1), ints(1, 0, 4, 2), stored, x)
    np.testing.assert_array_equal(x, expected)
