"""Attention, memory read and merge of one token on a GPU against their oracles."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import cached_values, floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.decode.attention import attend
from gecko_mlc.tir_kernels.cuda.decode.attention_merge import merge
from gecko_mlc.tir_kernels.cuda.decode.attention_window import parts
from gecko_mlc.tir_kernels.oracles import attention_inputs, chunk_attention, working_memory
from gecko_mlc.tir_kernels.shapes import Window

EPS = 1e-5
# Of a cached key, or value: half the distance of two neighbours of its dtype, relative, and a little.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize(
    ("z_dim", "value_dim", "heads", "rope_heads", "chunk_size", "dtype", "value_dtype"),
    [
        (32, 128, 4, 4, 16, "float32", "float32"),
        (32, 96, 2, 1, 32, "float32", "int8"),
        (36, 42, 3, 2, 13, "float16", "float16"),
        (36, 42, 3, 2, 13, "bfloat16", "int8"),
        (128, 256, 2, 2, 128, "bfloat16", "bfloat16"),
        (96, 384, 4, 0, 70, "float16", "int8"),
        # One head of the largest model, and values of more vectors than a block has threads.
        (256, 2048, 1, 1, 32, "bfloat16", "bfloat16"),
        (256, 2048, 1, 1, 32, "float16", "int8"),
        (300, 1040, 1, 1, 8, "float32", "float32"),
        (16, 4112, 1, 1, 8, "float16", "int8"),
        # More positions than a thread has on their way, and columns for a part of a block.
        (16, 1168, 1, 1, 31, "float16", "int8"),
        (32, 608, 2, 1, 31, "bfloat16", "int8"),
    ],
)
def test_step(
    z_dim: int, value_dim: int, heads: int, rope_heads: int, chunk_size: int, dtype: str, value_dtype: str
) -> None:
    """Nothing but positions that exist is read: the rest of the caches, of partial sums and memory is NaN."""
    rng, size, value_size = np.random.default_rng(1), z_dim // heads, value_dim // heads
    position = ints(0, 0, 3, 2, 1, chunk_size - 1, 0, chunk_size - 1, 2, 0).reshape(5, 2)
    slots = ints(3, 1, 0, 4, 2)
    b, count = len(slots), parts(chunk_size, heads)
    shape = Window(z_dim, value_dim, heads, rope_heads, chunk_size, 5, EPS, dtype, value_dtype)
    z, gamma, beta, r = floats(rng, b, z_dim), *floats(rng, 2, 4, z_dim), floats(rng, b, value_dim)
    cos, sin = floats(rng, 2, 2 * chunk_size, size // 2)
    keys, memory_keys = (floats(rng, 5, 2, chunk_size, z_dim).astype(dtype) for _ in range(2))
    # Values that codes stand for have scales that are NaN.
    previous = floats(rng, 5, 2, chunk_size, value_dim)
    previous[4, ..., :value_size] = 0
    values, window = cached_values(previous, heads, value_dtype)
    value = floats(rng, b, value_dim)
    memory = floats(rng, 5, heads, size, value_size).astype(dtype)
    for slot, (chunk, offset) in enumerate(position):
        for cache in (keys, values[-1]):
            cache[slot, chunk % 2, offset:] = np.nan
            if chunk < 1:
                cache[slot, 1] = np.nan
        if chunk < 2:
            memory[slot] = np.nan
    caches = [keys, memory_keys, *values]
    before = [cache.copy() for cache in caches]
    partial = np.full((b, heads, count, value_size), np.nan, np.float32)
    statistics = np.full((b, heads, count, 2), np.nan, np.float32)
    y = np.full((b, value_dim), np.nan, np.float32)
    launch_cuda(
        attend(shape),
        z, value, gamma, beta, cos, sin, slots, position, keys, *values, memory_keys, partial, statistics,
    )  # fmt: skip
    launch_cuda(
        merge(shape),
        z, gamma, beta, partial, statistics, r, slots, position, memory, y,
    )  # fmt: skip
    for i, slot in enumerate(slots):
        chunk, offset = position[slot]
        queries, weights, k, ak = attention_inputs.oracle(
            z[i].astype(float), gamma, beta, cos, sin, offset, heads, rope_heads, EPS
        )
        place = slot, chunk % 2, offset
        for cache, expected in ((keys, k), (memory_keys, ak)):
            np.testing.assert_allclose(cache[place].astype(float), expected, rtol=PRECISION[dtype], atol=4e-6)
        own, window[place] = cached_values(value[i], heads, value_dtype)
        for cache, expected in zip(values, own, strict=True):
            np.testing.assert_array_equal(cache[place], expected)
        for cache, old in zip(caches, before, strict=True):
            old[place] = cache[place]
        attention = chunk_attention.oracle(queries, keys[slot].astype(float), window[slot], chunk, offset, heads)
        read = working_memory.read_oracle(weights[None], memory[slot].astype(float))[0] if chunk >= 2 else 0
        np.testing.assert_allclose(y[i], attention * r[i] + read, rtol=2e-5, atol=2e-5)
    # One row of each slot was written.
    for cache, old in zip(caches, before, strict=True):
        np.testing.assert_array_equal(cache.view(np.uint8), old.view(np.uint8))
