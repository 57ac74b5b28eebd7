"""Attention inputs, chunk attention and working memory against their oracles."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cached_values, floats, ints, launch, machines

from gecko_mlc.tir_kernels.cpu import attention_inputs, chunk_attention, working_memory
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles import attention_inputs as attention_inputs_oracle
from gecko_mlc.tir_kernels.oracles import chunk_attention as chunk_attention_oracle
from gecko_mlc.tir_kernels.oracles import value_cache as value_cache_oracle
from gecko_mlc.tir_kernels.oracles import working_memory as working_memory_oracle
from gecko_mlc.tir_kernels.phase import Phase

# Dtypes are those of keys and of values.
SHAPES = pytest.mark.parametrize(
    ("z", "e", "heads", "chunk_size", "dtypes"),
    [
        (12, 20, 2, 7, ("float32", "float32")),
        (16, 64, 2, 300, ("float16", "float16")),
        (18, 21, 3, 13, ("float32", "float32")),
        (16, 64, 2, 135, ("float16", "int8")),
        (18, 21, 3, 13, ("float32", "int8")),
    ],
)


@machines
@pytest.mark.parametrize(("value_dim", "heads"), [(64, 2), (21, 3), (96, 1)])
def test_values_of_eight_bits(machine: CPU, value_dim: int, heads: int) -> None:
    """Codes and scales are the oracle's to the bit: of halves between two codes, of heads of zeros, and of extremes."""
    rng, n, size = np.random.default_rng(0), 6, value_dim // heads
    v = floats(rng, n, value_dim)
    v[1] = np.resize([127, 0.5, -0.5, 1.5, -2.5, 63.5, -127], value_dim)
    v[2, :size] = 0
    v[3:] *= np.array([[1e30], [1e-38], [1e-45]], np.float32)
    kernel = attention_inputs.attention_inputs(
        Phase.PREFILL, 4 * heads, value_dim, heads, 0, 2, 9, 1e-5, "float32", "int8", machine
    )
    keys, cos = np.zeros((2, 2, 9, 4 * heads), np.float32), np.zeros((18, 2), np.float32)
    slot, position = ints(1), ints(0, 0, 3, 2).reshape(2, 2)
    codes, scales = np.full((2, 2, 9, value_dim), 99, np.int8), np.full((2, 2, 9, heads), np.nan, np.float32)
    codes, scales = launch(
        kernel, floats(rng, n, 4 * heads), v, *floats(rng, 2, 4, 4 * heads), cos, cos, slot, position,
        keys, codes, scales, keys, np.zeros((n, 2, 4 * heads), np.float32), np.zeros((n, 4 * heads), np.float32),
    )[9:11]  # fmt: skip
    expected = value_cache_oracle.oracle(v, heads)
    np.testing.assert_array_equal(codes[1, 1, 2:8], expected[0])
    np.testing.assert_array_equal(scales[1, 1, 2:8], expected[1])
    assert (codes != 99).any(-1).sum() == np.isfinite(scales).all(-1).sum() == n
    # Half a code is the most that a value is off.
    error = np.abs(value_cache_oracle.values_of(*expected) - v).reshape(n, heads, size).max(-1)
    assert (error <= 0.5001 * expected[1] + 1e-30).all()


@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0))])
@pytest.mark.parametrize("rope_heads", [0, 1, 2])
def test_attention_inputs(phase: Phase, slots: tuple[int, ...], rope_heads: int) -> None:
    rng, z_dim, e, heads, chunk_size = np.random.default_rng(0), 12, 10, 2, 7
    n = 4 if phase is Phase.PREFILL else 2
    z, v, gamma, beta = floats(rng, n, z_dim), floats(rng, n, e), *floats(rng, 2, 4, z_dim)
    cos, sin = floats(rng, 2, 2 * chunk_size, z_dim // heads // 2)
    position = ints(4, 6, 5, 2, 3, 1).reshape(3, 2)
    keys, values, memory_keys = (np.zeros((3, 2, chunk_size, f), np.float32) for f in (z_dim, e, z_dim))
    kernel = attention_inputs.attention_inputs(
        phase, z_dim, e, heads, rope_heads, 3, chunk_size, 1e-5, "float32", "float32", CPU()
    )
    out = launch(
        kernel, z, v, gamma, beta, cos, sin, ints(*slots), position, keys, values, memory_keys,
        np.zeros((n, 2, z_dim), np.float32), np.zeros((n, z_dim), np.float32),
    )  # fmt: skip
    for i in range(n):
        slot = slots[phase.sequence(i)]
        offset, parity = position[slot, 1] + phase.token(i), position[slot, 0] % 2
        queries, weights, k, ak = attention_inputs_oracle.oracle(
            z[i], gamma, beta, cos, sin, offset, heads, rope_heads, 1e-5
        )
        np.testing.assert_allclose(out[-2][i], queries, atol=2e-6)
        np.testing.assert_allclose(out[-1][i], weights, atol=1e-6)
        np.testing.assert_allclose(out[8][slot, parity, offset], k, atol=2e-6)
        np.testing.assert_array_equal(out[9][slot, parity, offset], v[i])
        np.testing.assert_allclose(out[10][slot, parity, offset], ak, atol=2e-6)
    # Rows written: n of each cache, no more.
    assert [(out[i] != 0).any(-1).sum() for i in (8, 9, 10)] == [n, n, n]


@machines
@SHAPES
def test_attention_of_a_prefill_piece(
    machine: CPU, z: int, e: int, heads: int, chunk_size: int, dtypes: tuple[str, str]
) -> None:
    rng = np.random.default_rng(1)
    keys = floats(rng, 3, 2, chunk_size, z).astype(dtypes[0])
    cache, values = cached_values(floats(rng, 3, 2, chunk_size, e), heads, dtypes[1])
    kernel = chunk_attention.prefill(z, e, heads, 3, chunk_size, *dtypes, machine)
    for chunk, offset, n in ((0, 0, chunk_size), (0, 3, 2), (5, 1, 5), (4, chunk_size - 1, 1)):
        position = ints(9, 9, chunk, offset, 8, 8).reshape(3, 2)
        queries = floats(rng, n, 2, z)
        y = launch(kernel, queries, ints(1), position, keys, *cache, np.zeros((n, e), np.float32))[-1]
        for i in range(n):
            expected = chunk_attention_oracle.oracle(
                queries[i], keys[1].astype(float), values[1], chunk, offset + i, heads
            )
            np.testing.assert_allclose(y[i], expected, atol=1e-5)


@machines
@SHAPES
def test_attention_of_a_step(
    machine: CPU, z: int, e: int, heads: int, chunk_size: int, dtypes: tuple[str, str]
) -> None:
    """Partial sums of absent positions are never read: they are NaN here."""
    rng = np.random.default_rng(2)
    keys = floats(rng, 3, 2, chunk_size, z).astype(dtypes[0])
    cache, values = cached_values(floats(rng, 3, 2, chunk_size, e), heads, dtypes[1])
    position, slots = ints(0, 3, 5, 1, 4, chunk_size - 1).reshape(3, 2), (2, 0, 1)
    queries, tiles = floats(rng, 3, 2, z), chunk_attention.decode_tiles(chunk_size)
    partial = launch(
        chunk_attention.decode(z, e, heads, 3, chunk_size, *dtypes, machine),
        queries, ints(*slots), position, keys, *cache,
        np.full((3, heads, tiles, e // heads), np.nan, np.float32),
        np.zeros((3, heads, tiles, 2), np.float32),
    )[-2:]  # fmt: skip
    combine = chunk_attention.combine(e, heads, chunk_size, machine)
    y = launch(combine, *partial, np.zeros((3, e), np.float32))[-1]
    for i, slot in enumerate(slots):
        expected = chunk_attention_oracle.oracle(
            queries[i], keys[slot].astype(float), values[slot], *position[slot], heads
        )
        np.testing.assert_allclose(y[i], expected, atol=1e-5)


@machines
@SHAPES
@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0))])
def test_memory_read(
    machine: CPU,
    z: int,
    e: int,
    heads: int,
    chunk_size: int,
    dtypes: tuple[str, str],
    phase: Phase,
    slots: tuple[int, ...],
) -> None:
    """The second chunk, slot 0's, does not read."""
    rng, n = np.random.default_rng(3), 13 if phase is Phase.PREFILL else 2
    position = ints(1, 3, 2, 0, 5, 1).reshape(3, 2)
    memory, weights = floats(rng, 3, heads, z // heads, e // heads), floats(rng, n, z)
    sca, gate = floats(rng, 2, n, e)
    kernel = working_memory.read(phase, z, e, heads, 3, machine)
    y = launch(kernel, weights, sca, gate, ints(*slots), position, memory, np.zeros_like(sca))[-1]
    memory[0] = 0
    for i in range(n):
        read = working_memory_oracle.read_oracle(weights[i : i + 1], memory[slots[phase.sequence(i)]])
        np.testing.assert_allclose(y[i], sca[i] * gate[i] + read[0], atol=1e-5)


@machines
@SHAPES
def test_memory_write(machine: CPU, z: int, e: int, heads: int, chunk_size: int, dtypes: tuple[str, str]) -> None:
    """A first write, a later one, and none at the end of chunk 0."""
    rng, b, size = np.random.default_rng(4), 3, z // heads
    keys = floats(rng, 3, 2, chunk_size, z).astype(dtypes[0])
    cache, values = cached_values(floats(rng, 3, 2, chunk_size, e), heads, dtypes[1])
    memory, log_norm = floats(rng, 3, heads, size, e // heads), floats(rng, 3, heads, size)
    memory[0], log_norm[0] = 0, -np.inf
    position, slots = ints(1, chunk_size, 0, chunk_size, 4, chunk_size).reshape(3, 2), ints(2, 0, 1)
    scratch = [np.zeros((b, heads, *shape), np.float32) for shape in ((chunk_size, size), (chunk_size, size), (size,))]
    weights = working_memory.write_weights(z, heads, 3, chunk_size, dtypes[0])
    *_, new_log_norm, kappa, shares, rho = launch(weights, slots, position, keys, log_norm, *scratch)
    write = working_memory.write(z, e, heads, 3, chunk_size, dtypes[1], machine)
    new_memory = launch(write, kappa, shares, rho, slots, position, *cache, memory)[-1]
    for slot in (0, 2):
        parity = (position[slot, 0] + 1) % 2
        expected, total = working_memory_oracle.write_oracle(
            keys[slot, parity].astype(float), values[slot, parity], memory[slot], log_norm[slot]
        )
        np.testing.assert_allclose(new_memory[slot], expected, atol=1e-5)
        np.testing.assert_allclose(new_log_norm[slot], total, atol=1e-5)
    np.testing.assert_array_equal(new_memory[1], memory[1])
    np.testing.assert_array_equal(new_log_norm[1], log_norm[1])
