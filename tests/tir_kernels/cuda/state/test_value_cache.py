"""Values of eight bits on a GPU against their oracle."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.state.value_cache import quantize_values
from gecko_mlc.tir_kernels.oracles.value_cache import oracle
from gecko_mlc.tir_kernels.shapes import Window


@pytest.mark.parametrize(
    ("value_dim", "heads", "dtype"),
    [(42, 3, "float32"), (1152, 9, "float16"), (520, 1, "bfloat16"), (2048, 1, "float16"), (21, 3, "bfloat16")],
)
def test_quantize_values(value_dim: int, heads: int, dtype: str) -> None:
    """Codes and scales to the bit, of zeros too; other rows stay as they are."""
    rng, n, slot = np.random.default_rng(0), 3, 1
    v, position = floats(rng, n, value_dim), ints(9, 9, 3, 2).reshape(2, 2)
    v[1, : value_dim // heads] = 0
    v = v.astype(dtype)
    codes, scales = np.full((2, 2, 6, value_dim), 99, np.int8), np.full((2, 2, 6, heads), np.nan, np.float32)
    window = Window(0, value_dim, heads, 0, chunk_size=6, slots=2, eps=0.0, key_dtype=dtype, value_dtype="int8")
    launch_cuda(quantize_values(window, dtype), v, ints(slot), position, codes, scales)
    expected = oracle(v.astype(np.float32), heads)
    np.testing.assert_array_equal(codes[slot, 1, 2:5], expected[0])
    np.testing.assert_array_equal(scales[slot, 1, 2:5], expected[1])
    assert (codes != 99).any(-1).sum() == np.isfinite(scales).all(-1).sum() == n
