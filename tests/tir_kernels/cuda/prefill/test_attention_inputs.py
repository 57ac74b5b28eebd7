"""Queries, keys and read weights of prefill on a GPU against their oracle."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.prefill.attention_inputs import attention_inputs
from gecko_mlc.tir_kernels.oracles.attention_inputs import oracle
from gecko_mlc.tir_kernels.shapes import Window

# Of a result: the distance of two neighbours of its dtype, relative, and a little in fp32.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize(
    ("z_dim", "heads", "rope_heads", "chunk_size", "dtype", "cache_dtype"),
    [
        (32, 4, 4, 16, "float32", "float32"),
        (32, 2, 1, 32, "float32", "float16"),
        (108, 9, 5, 13, "float16", "float16"),
        (540, 1, 1, 8, "bfloat16", "bfloat16"),
        (512, 2, 0, 16, "bfloat16", "bfloat16"),
    ],
)
def test_attention_inputs(
    z_dim: int, heads: int, rope_heads: int, chunk_size: int, dtype: str, cache_dtype: str
) -> None:
    rng, n, slot = np.random.default_rng(0), 5, 1
    window = Window(z_dim, heads, heads, rope_heads, chunk_size, 3, 1e-5, cache_dtype, cache_dtype)
    z, gamma, beta = floats(rng, n, z_dim), *floats(rng, 2, 4, z_dim)
    cos, sin = floats(rng, 2, 2 * chunk_size, z_dim // heads // 2)
    position = ints(4, 6, 5, chunk_size - n, 3, 1).reshape(3, 2)
    keys, memory_keys = np.zeros((2, 3, 2, chunk_size, z_dim), np.dtype(cache_dtype))
    queries, weights = (np.full((n, *shape), np.nan, np.dtype(dtype)) for shape in ((2, z_dim), (z_dim,)))
    launch_cuda(
        attention_inputs(window, dtype),
        z, gamma, beta, cos, sin, ints(slot), position, keys, memory_keys, queries, weights,
    )  # fmt: skip
    exact, cached = ({"rtol": PRECISION[d], "atol": 4e-6} for d in (dtype, cache_dtype))
    for i in range(n):
        offset, parity = position[slot, 1] + i, position[slot, 0] % 2
        expected = oracle(z[i].astype(float), gamma, beta, cos, sin, offset, heads, rope_heads, 1e-5)
        np.testing.assert_allclose(queries[i].astype(float), expected[0], **exact)
        np.testing.assert_allclose(weights[i].astype(float), expected[1], **exact)
        np.testing.assert_allclose(keys[slot, parity, offset].astype(float), expected[2], **cached)
        np.testing.assert_allclose(memory_keys[slot, parity, offset].astype(float), expected[3], **cached)
    # Rows written: n of each cache, no more.
    assert [(cache != 0).any(-1).sum() for cache in (keys, memory_keys)] == [n, n]
