"""Attention over the previous chunk and the own one."""

from __future__ import annotations

import numpy as np
from support.launch import cached_values, cpus, floats, ints, launch, windows

from gecko_mlc.tir_kernels.cpu import chunk_attention
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.chunk_attention import oracle
from gecko_mlc.tir_kernels.shapes import Window


@cpus
@windows
def test_attention_of_a_prefill_piece(hardware: CPU, window: Window) -> None:
    rng, heads, chunk_size = np.random.default_rng(1), window.heads, window.chunk_size
    keys = floats(rng, *window.keys).astype(window.key_dtype)
    cache, values = cached_values(floats(rng, *window.values), heads, window.value_dtype)
    kernel = chunk_attention.prefill(window, hardware)
    for chunk, offset, n in ((0, 0, chunk_size), (0, 3, 2), (5, 1, 5), (4, chunk_size - 1, 1)):
        position = ints(9, 9, chunk, offset, 8, 8).reshape(3, 2)
        queries = floats(rng, n, 2, window.z_dim)
        out = np.zeros((n, window.value_dim), np.float32)
        y = launch(kernel, queries, ints(1), position, keys, *cache, out)[-1]
        for i in range(n):
            expected = oracle(queries[i], keys[1].astype(float), values[1], chunk, offset + i, heads)
            np.testing.assert_allclose(y[i], expected, atol=1e-5)


@cpus
@windows
def test_attention_of_a_step(hardware: CPU, window: Window) -> None:
    """Partial sums of absent positions are never read: they are NaN here."""
    rng, heads, chunk_size = np.random.default_rng(2), window.heads, window.chunk_size
    keys = floats(rng, *window.keys).astype(window.key_dtype)
    cache, values = cached_values(floats(rng, *window.values), heads, window.value_dtype)
    position, slots = ints(0, 3, 5, 1, 4, chunk_size - 1).reshape(3, 2), (2, 0, 1)
    queries, tiles = floats(rng, 3, 2, window.z_dim), chunk_attention.decode_tiles(chunk_size)
    partial = launch(
        chunk_attention.decode(window, hardware),
        queries, ints(*slots), position, keys, *cache,
        np.full((3, heads, tiles, window.value_head_dim), np.nan, np.float32),
        np.zeros((3, heads, tiles, 2), np.float32),
    )[-2:]  # fmt: skip
    combine = chunk_attention.combine(window, hardware)
    y = launch(combine, *partial, np.zeros((3, window.value_dim), np.float32))[-1]
    for i, slot in enumerate(slots):
        expected = oracle(queries[i], keys[slot].astype(float), values[slot], *position[slot], heads)
        np.testing.assert_allclose(y[i], expected, atol=1e-5)
