"""Attention of prefill on a GPU against the oracles of the window and of the memory's read."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import cached_values, floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.prefill.attention_softmax import attention_statistics, attention_weights
from gecko_mlc.tir_kernels.cuda.prefill.attention_values import attention_values
from gecko_mlc.tir_kernels.cuda.prefill.scores import padded, splits
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.oracles.chunk_attention import oracle
from gecko_mlc.tir_kernels.oracles.working_memory import read_oracle
from gecko_mlc.tir_kernels.shapes import Window

# Weights and results are rounded.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize(
    ("size", "value_size", "heads", "chunk_size", "chunk", "offset", "n", "dtypes", "architecture"),
    [
        (6, 42, 3, 13, 0, 12, 1, ("bfloat16", "bfloat16", "bfloat16"), 90),
        (40, 70, 1, 70, 3, 3, 66, ("float32", "float32", "float32"), 90),
        (24, 20, 2, 40, 2, 7, 20, ("float32", "float16", "int8"), 90),
        (72, 6, 1, 70, 2, 0, 70, ("float16", "float16", "float16"), 80),
        (8, 8, 4, 150, 0, 100, 43, ("float16", "float16", "float16"), 90),
        (8, 16, 2, 150, 1, 100, 43, ("float16", "float16", "int8"), 90),
        (136, 264, 2, 150, 3, 1, 140, ("bfloat16", "bfloat16", "bfloat16"), 89),
        (64, 256, 1, 600, 1, 395, 197, ("float16", "float16", "float16"), 80),
        (16, 256, 1, 13, 3, 0, 13, ("bfloat16", "bfloat16", "bfloat16"), 90),
        (16, 272, 1, 70, 2, 3, 66, ("bfloat16", "bfloat16", "int8"), 80),
        (16, 256, 1, 13, 3, 0, 13, ("float16", "float16", "int8"), 90),
    ],
)
def test_attention_and_the_merge(
    size: int,
    value_size: int,
    heads: int,
    chunk_size: int,
    chunk: int,
    offset: int,
    n: int,
    dtypes: tuple[str, str, str],
    architecture: int,
) -> None:
    """`dtypes` are those of activations, keys and values."""
    rng, slots, slot, hardware = np.random.default_rng(0), 2, 1, CUDA((architecture,))
    rounded, key_dtype = np.dtype(dtypes[0]), np.dtype(dtypes[1])
    z_dim, value_dim = heads * size, heads * value_size
    window = Window(z_dim, value_dim, heads, 1, chunk_size, slots, 1e-5, *dtypes[1:])
    # Scores of a few units, other ones than the first of them the largest.
    queries = (floats(rng, n, 2, z_dim) * 3 / np.sqrt(size)).astype(rounded)
    r, reads = floats(rng, n, value_dim).astype(rounded), abs(floats(rng, n, z_dim) / size).astype(rounded)
    position = ints(7, 5, chunk, offset).reshape(slots, 2)
    own = chunk % 2
    keys, values = (np.full((slots, 2, chunk_size, dim), np.nan, np.float32) for dim in (z_dim, value_dim))
    memory = np.full((slots, heads, size, value_size), np.nan, key_dtype)
    for cache in (keys, values):
        cache[slot, own, : offset + n] = floats(rng, offset + n, cache.shape[-1])
        if chunk >= 1:
            cache[slot, 1 - own] = floats(rng, chunk_size, cache.shape[-1])
    keys, (values, numbers) = keys.astype(key_dtype), cached_values(values, heads, dtypes[2])
    if chunk >= 2:
        memory[slot] = floats(rng, heads, size, value_size)
    statistics = np.full((heads, splits(chunk_size), n, 2), np.nan, np.float32)
    weights = np.full((heads, n, 2, padded(chunk_size)), np.nan, rounded)
    merged = np.full((n, value_dim), np.nan, rounded)
    shape = window, dtypes[0], hardware
    launch_cuda(attention_statistics(*shape), queries, ints(slot), position, keys, statistics)
    launch_cuda(
        attention_weights(*shape),
        queries, ints(slot), position, keys, statistics, weights,
    )  # fmt: skip
    launch_cuda(
        attention_values(*shape),
        weights, ints(slot), position, *values, r, reads, memory, merged,
    )  # fmt: skip
    expected = np.stack(
        [
            oracle(queries[i].astype(float), keys[slot].astype(float), numbers[slot], chunk, offset + i, heads)
            for i in range(n)
        ]
    ) * r.astype(float)
    if chunk >= 2:
        expected += read_oracle(reads.astype(float), memory[slot].astype(float))
    error = np.abs(merged.astype(float) - expected).max() / np.abs(expected).max()
    assert error < PRECISION[dtypes[0]]
