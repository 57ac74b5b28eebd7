"""The memory's write on a GPU."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.memory.write import write
from gecko_mlc.tir_kernels.shapes import Window


@pytest.mark.parametrize(
    ("size", "value_size", "dtype"), [(3, 14, "float32"), (5, 1028, "bfloat16"), (4, 7, "float16")]
)
def test_write(size: int, value_size: int, dtype: str) -> None:
    """Nothing at the end of chunk 0, all of U at that of chunk 1, then a share of it."""
    rng, heads = np.random.default_rng(0), 2
    window = Window(heads * size, heads * value_size, heads, 1, 16, 4, 1e-5, dtype, dtype)
    memory, log_norm = (np.full(shape, np.nan, np.float32) for shape in (window.memory, window.log_norm))
    memory[3], log_norm[3] = floats(rng, *memory.shape[1:]), floats(rng, *log_norm.shape[1:])
    old, old_norm = memory[3].astype(float), log_norm[3].astype(float)
    log_mass, memory_sum = floats(rng, *window.log_norm), floats(rng, 4, heads, size, value_size + size)
    rounded = [] if dtype == "float32" else [np.full(window.memory, np.nan, dtype)]
    position = ints(1, 16, 0, 16, 9, 9, 2, 16).reshape(4, 2)
    launch_cuda(write(window), ints(3, 0, 1), position, log_mass, memory_sum, log_norm, memory, *rounded)
    update, total = memory_sum[3, ..., :value_size], np.logaddexp(old_norm, log_mass[3])
    rho = np.exp(log_mass[3] - total)[..., None]
    np.testing.assert_array_equal(memory[0], memory_sum[0, ..., :value_size])
    np.testing.assert_array_equal(log_norm[0], log_mass[0])
    np.testing.assert_allclose(memory[3], (1 - rho) * old + rho * update, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(log_norm[3], total, rtol=2e-6, atol=2e-6)
    assert np.isnan(memory[1:3]).all() and np.isnan(log_norm[1:3]).all()
    for read in rounded:
        np.testing.assert_array_equal(read.astype(float), memory.astype(dtype).astype(float))
