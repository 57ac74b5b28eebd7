"""Rows of the embedding on a GPU against their oracle."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from gecko_mlc.tir_kernels.cuda import embedding
from gecko_mlc.tir_kernels.embedding import oracle
from launch import floats, ints
from launch_cuda import launch_cuda


@pytest.mark.parametrize(
    ("dim", "dtype"), [(7, "float32"), (1028, "float32"), (6, "float16"), (2056, "float16"), (4104, "bfloat16")]
)
def test_rows(dim: int, dtype: str) -> None:
    """Rows that no token names are NaN."""
    weight, tokens = floats(np.random.default_rng(0), 11, dim).astype(dtype), ints(3, 10, 0, 3)
    weight[np.setdiff1d(np.arange(11), tokens)] = np.nan
    expected = oracle(tokens, weight, 2.5)
    x = np.full((4, dim), np.nan, np.float32)
    launch_cuda(embedding.take(11, dim, 2.5, dtype), tokens, weight, x)
    np.testing.assert_array_equal(x, expected)
    x[:] = np.nan
    launch_cuda(embedding.take_current(11, dim, 2.5, dtype, 5), ints(10, 3, 3, 99, 0), ints(1, 0, 4, 2), weight, x)
    np.testing.assert_array_equal(x, expected)
