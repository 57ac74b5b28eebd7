"""The working memory's write on a GPU, spread over the tokens, against its oracle."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import cached_values, floats, ints
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.memory.absorb import absorb
from gecko_mlc.tir_kernels.cuda.memory.start_chunk import start_chunk
from gecko_mlc.tir_kernels.cuda.memory.update import update
from gecko_mlc.tir_kernels.cuda.memory.write import write
from gecko_mlc.tir_kernels.hardware import ABSORB_TILE
from gecko_mlc.tir_kernels.oracles.working_memory import write_oracle
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window

DIM, SLOTS = 8, 4
# Of the memory, relative to its largest element: as far as two neighbours of the caches' dtype are apart.
PRECISION = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}


@pytest.mark.parametrize(
    ("z_dim", "value_dim", "heads", "chunk_size", "dtype", "value_dtype"),
    [
        (36, 42, 3, 70, "float32", "float32"),
        # More rows, columns, and features of the prediction than a block has.
        (130, 140, 1, 128, "float32", "float32"),
        (272, 304, 2, 128, "bfloat16", "bfloat16"),
        (48, 80, 2, 70, "float16", "float16"),
        (48, 304, 2, 70, "float16", "int8"),
        (24, 24, 1, 64, "bfloat16", "int8"),
        # No multiple of 16 bytes.
        (36, 42, 3, 16, "bfloat16", "bfloat16"),
        (36, 42, 3, 16, "float16", "int8"),
    ],
)
def test_absorbed_tokens_are_what_whole_chunks_write(
    z_dim: int, value_dim: int, heads: int, chunk_size: int, dtype: str, value_dtype: str
) -> None:
    """Slots at different phases, in random pieces and steps: the memory is what whole chunks give.

    What was not written is NaN: the memory before its first write, its sums, and all positions that do not exist.
    """
    rng, size, value_size = np.random.default_rng(1), z_dim // heads, value_dim // heads
    shape = Window(z_dim, value_dim, heads, 1, chunk_size, SLOTS, 1e-5, dtype, value_dtype)
    step, piece = (absorb(phase, DIM, shape) for phase in (Phase.DECODE, Phase.PREFILL))
    position = np.zeros((SLOTS, 2), np.int32)
    keys, values = (np.full((SLOTS, 2, chunk_size, f), np.nan, np.float32) for f in (z_dim, value_dim))
    keys, (caches, window) = keys.astype(dtype), cached_values(values, heads, value_dtype)
    log_mass, log_norm = np.full((2, SLOTS, heads, size), np.nan, np.float32)
    log_sum = np.full((SLOTS, heads, chunk_size), np.nan, np.float32)
    memory_sum = np.full((SLOTS, heads, size, value_size + size), np.nan, np.float32)
    memory = np.full((SLOTS, heads, size, value_size), np.nan, np.float32)
    memory_read = memory.astype(dtype)
    absorbed = keys, *caches, log_mass, log_sum, memory_sum
    expected = {slot: (np.zeros(memory.shape[1:]), np.full((heads, size), -np.inf)) for slot in (2, 0, 3)}

    def consume(slot: int, n: int) -> None:
        """Keys and values of the next n tokens."""
        chunk, offset = position[slot]
        place = slot, chunk % 2, slice(offset, offset + n)
        keys[place] = 2 * floats(rng, n, z_dim)
        new, window[place] = cached_values(2 * floats(rng, n, value_dim), heads, value_dtype)
        for cache, value in zip(caches, new, strict=True):
            cache[place] = value

    def end_chunk(slots: list[int]) -> None:
        ids = ints(*slots)
        current = memory if dtype == "float32" else memory_read
        launch_cuda(update(shape), ids, position, current, memory_sum)
        launch_cuda(
            write(shape),
            ids, position, log_mass, memory_sum, log_norm, memory, *([] if dtype == "float32" else [memory_read]),
        )  # fmt: skip
        launch_cuda(start_chunk(shape), ids, position, keys, log_mass, log_sum)
        for slot in slots:
            chunk = position[slot, 0]
            if chunk >= 1:
                ak = keys[slot, 1 - chunk % 2].astype(float)
                expected[slot] = write_oracle(ak, window[slot, 1 - chunk % 2], *expected[slot])
                new, total = expected[slot]
                np.testing.assert_allclose(memory[slot], new, rtol=0, atol=PRECISION[dtype] * np.abs(new).max())
                np.testing.assert_allclose(log_norm[slot], total, rtol=2e-6, atol=2e-6)
                if dtype != "float32":
                    np.testing.assert_array_equal(memory_read[slot], memory[slot].astype(dtype))
            # Of codes, the scales.
            keys[slot, 1 - chunk % 2] = caches[-1][slot, 1 - chunk % 2] = np.nan
            position[slot] = chunk + 1, 0

    while position[list(expected), 0].min() < 4:
        slots = rng.permutation(list(expected))[: rng.integers(1, 4)].tolist()
        if ended := [slot for slot in slots if position[slot, 1] == chunk_size]:
            end_chunk(ended)
        elif rng.integers(2):
            for slot in slots:
                consume(slot, 1)
            launch_cuda(step, ints(*slots), position, *absorbed)
            position[slots, 1] += 1
        else:
            # Often to before a tile's last position, for a step to take it.
            offset = int(position[slots[0], 1])
            tile = offset // ABSORB_TILE * ABSORB_TILE + ABSORB_TILE
            n = min(tile, chunk_size) - 1 - offset if rng.integers(2) else rng.integers(chunk_size - offset) + 1
            n = max(int(n), 1)
            consume(slots[0], n)
            launch_cuda(piece, np.full((n, DIM), np.nan, np.float32), ints(slots[0]), position, *absorbed)
            position[slots[0], 1] += n
    assert np.isnan(memory[1]).all() and np.isnan(memory_sum[1]).all() and np.isnan(log_mass[1]).all()
