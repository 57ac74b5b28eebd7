"""Reads of the working memory, and writes at a chunk's end."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cached_values, cpus, floats, ints, launch, windows

from gecko_mlc.tir_kernels.cpu import working_memory
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.working_memory import read_oracle, write_oracle
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window


@cpus
@windows
@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0))])
def test_read(hardware: CPU, window: Window, phase: Phase, slots: tuple[int, ...]) -> None:
    """The second chunk, slot 0's, does not read."""
    rng, n = np.random.default_rng(3), 13 if phase is Phase.PREFILL else 2
    position = ints(1, 3, 2, 0, 5, 1).reshape(3, 2)
    memory, weights = floats(rng, *window.memory), floats(rng, n, window.z_dim)
    sca, gate = floats(rng, 2, n, window.value_dim)
    kernel = working_memory.read(phase, window, hardware)
    y = launch(kernel, weights, sca, gate, ints(*slots), position, memory, np.zeros_like(sca))[-1]
    memory[0] = 0
    for i in range(n):
        read = read_oracle(weights[i : i + 1], memory[slots[phase.sequence(i)]])
        np.testing.assert_allclose(y[i], sca[i] * gate[i] + read[0], atol=1e-5)


@cpus
@windows
def test_write(hardware: CPU, window: Window) -> None:
    """A first write, a later one, and none at the end of chunk 0."""
    rng, chunk_size, dz = np.random.default_rng(4), window.chunk_size, window.head_dim
    keys = floats(rng, *window.keys).astype(window.key_dtype)
    cache, values = cached_values(floats(rng, *window.values), window.heads, window.value_dtype)
    memory, log_norm = floats(rng, *window.memory), floats(rng, *window.log_norm)
    memory[0], log_norm[0] = 0, -np.inf
    position, slots = ints(1, chunk_size, 0, chunk_size, 4, chunk_size).reshape(3, 2), ints(2, 0, 1)
    scratch = [np.zeros((3, window.heads, *shape), np.float32) for shape in ((chunk_size, dz), (chunk_size, dz), (dz,))]
    weights = working_memory.write_weights(window)
    *_, new_log_norm, kappa, shares, rho = launch(weights, slots, position, keys, log_norm, *scratch)
    write = working_memory.write(window, hardware)
    new_memory = launch(write, kappa, shares, rho, slots, position, *cache, memory)[-1]
    for slot in (0, 2):
        parity = (position[slot, 0] + 1) % 2
        expected, total = write_oracle(
            keys[slot, parity].astype(float), values[slot, parity], memory[slot], log_norm[slot]
        )
        np.testing.assert_allclose(new_memory[slot], expected, atol=1e-5)
        np.testing.assert_allclose(new_log_norm[slot], total, atol=1e-5)
    np.testing.assert_array_equal(new_memory[1], memory[1])
    np.testing.assert_array_equal(new_log_norm[1], log_norm[1])
