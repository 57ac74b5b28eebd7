"""The softmax of prefill's attention on a GPU."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.prefill.attention_softmax import attention_statistics, attention_weights
from gecko_mlc.tir_kernels.cuda.prefill.scores import padded, splits
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.shapes import Window

# Of a weight: it is rounded once.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize(
    ("size", "chunk_size", "chunk", "offset", "n", "dtype"),
    [
        (6, 13, 0, 12, 1, "float32"),
        (40, 70, 3, 3, 66, "float32"),
        (72, 70, 2, 0, 70, "float16"),
        (64, 600, 1, 395, 197, "bfloat16"),
    ],
)
def test_weights_are_the_softmax_of_what_a_token_sees(
    size: int, chunk_size: int, chunk: int, offset: int, n: int, dtype: str
) -> None:
    """The previous chunk, if there is one, and the own up to the token itself; zeros follow to a multiple of 8."""
    rng, slot, heads, hardware = np.random.default_rng(0), 1, 2, CUDA((80, 90))
    window = Window(heads * size, heads, heads, 1, chunk_size, 2, 1e-5, dtype, dtype)
    queries = (floats(rng, n, 2, window.z_dim) * 3 / np.sqrt(size)).astype(dtype)
    keys, own = np.full(window.keys, np.nan, np.float32), chunk % 2
    keys[slot, own, : offset + n] = floats(rng, offset + n, window.z_dim)
    if chunk >= 1:
        keys[slot, 1 - own] = floats(rng, chunk_size, window.z_dim)
    keys, position = keys.astype(dtype), ints(7, 5, chunk, offset).reshape(2, 2)
    statistics = np.full((heads, splits(chunk_size), n, 2), np.nan, np.float32)
    weights = np.full((heads, n, 2, padded(chunk_size)), np.nan, dtype)
    arguments = queries, ints(slot), position, keys
    launch_cuda(attention_statistics(window, dtype, hardware), *arguments, statistics)
    launch_cuda(attention_weights(window, dtype, hardware), *arguments, statistics, weights)
    previous = chunk_size if chunk >= 1 else 0
    for i in range(n):
        seen = offset + i + 1
        q = queries[i].astype(float).reshape(2, heads, 1, size)
        k = keys[slot, [own, 1 - own]].astype(float).reshape(2, chunk_size, heads, size).transpose(0, 2, 1, 3)
        scores = (q * k).sum(-1)
        row = np.concatenate([scores[1, :, :previous], scores[0, :, :seen]], axis=-1)
        expected = np.exp(row - row.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
        result = weights[:, i].astype(float)
        for found, exact in (
            (result[:, 0, :previous], expected[:, :previous]),
            (result[:, 1, :seen], expected[:, previous:]),
        ):
            np.testing.assert_allclose(found, exact, rtol=4 * PRECISION[dtype], atol=PRECISION[dtype] / 100)
        assert (result[:, 1, seen : -(-seen // 8) * 8] == 0).all()
