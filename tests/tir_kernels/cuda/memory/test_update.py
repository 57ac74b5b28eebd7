"""U of a chunk on a GPU: what the memory predicts is taken off."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.memory.update import update
from gecko_mlc.tir_kernels.shapes import Window

# Of U, relative to its largest element: P and M are rounded to the keys' dtype.
PRECISION = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}


@pytest.mark.parametrize(
    ("size", "value_size", "dtype"),
    [(12, 14, "float32"), (130, 70, "float32"), (136, 152, "bfloat16"), (24, 136, "float16"), (12, 14, "float16")],
)
def test_update(size: int, value_size: int, dtype: str) -> None:
    """Of the slots that have a memory, which chunks 0 and 1 have not."""
    rng, heads = np.random.default_rng(0), 2
    window = Window(heads * size, heads * value_size, heads, 1, 16, 4, 1e-5, dtype, dtype)
    memory, memory_sum = floats(rng, *window.memory).astype(dtype), floats(rng, 4, heads, size, value_size + size)
    expected = memory_sum.astype(float)
    for slot in (0, 3):
        predicted = expected[slot, ..., value_size:].transpose(0, 2, 1) @ memory[slot].astype(float)
        expected[slot, ..., :value_size] -= predicted
    memory[1] = np.nan
    launch_cuda(update(window), ints(3, 1, 0), ints(2, 16, 1, 16, 9, 9, 5, 16).reshape(4, 2), memory, memory_sum)
    assert np.abs(memory_sum - expected).max() < PRECISION[dtype] * np.abs(expected).max()
