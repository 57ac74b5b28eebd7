"""The softmaxes of an ended chunk on a GPU."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.memory.start_chunk import start_chunk
from gecko_mlc.tir_kernels.shapes import Window


@pytest.mark.parametrize(
    ("z_dim", "heads", "chunk_size", "dtype"), [(36, 3, 70, "float32"), (80, 2, 13, "bfloat16"), (8, 1, 600, "float16")]
)
def test_start_chunk(z_dim: int, heads: int, chunk_size: int, dtype: str) -> None:
    """lnλ of each feature and the logarithm of each position's sum; what other slots have stays."""
    rng, window = np.random.default_rng(0), Window(z_dim, heads, heads, 1, chunk_size, 3, 1e-5, dtype, dtype)
    keys = (2 * floats(rng, *window.keys)).astype(dtype)
    log_mass, log_sum = np.full(window.log_norm, 9, np.float32), np.full((3, heads, chunk_size), 9, np.float32)
    position = ints(4, chunk_size, 9, 9, 7, chunk_size).reshape(3, 2)
    launch_cuda(start_chunk(window), ints(2, 0), position, keys, log_mass, log_sum)
    for slot in (0, 2):
        exponentials = np.exp(keys[slot, position[slot, 0] % 2].astype(float)).reshape(chunk_size, heads, -1)
        np.testing.assert_allclose(log_mass[slot], np.log(exponentials.sum(0)), rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(log_sum[slot], np.log(exponentials.sum(-1)).T, rtol=2e-6, atol=2e-6)
    assert (log_mass[1] == 9).all() and (log_sum[1] == 9).all()
