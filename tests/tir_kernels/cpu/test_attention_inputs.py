"""Queries, read weights, and the rows that go to the caches."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints, launch

from gecko_mlc.tir_kernels.cpu.attention_inputs import attention_inputs
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.attention_inputs import oracle
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window


@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0))])
@pytest.mark.parametrize("rope_heads", [0, 1, 2])
def test_attention_inputs(phase: Phase, slots: tuple[int, ...], rope_heads: int) -> None:
    window = Window(12, 10, 2, rope_heads, 7, 3, 1e-5, "float32", "float32")
    rng, n, z_dim = np.random.default_rng(0), 4 if phase is Phase.PREFILL else 2, window.z_dim
    z, v, gamma, beta = floats(rng, n, z_dim), floats(rng, n, window.value_dim), *floats(rng, 2, 4, z_dim)
    cos, sin = floats(rng, 2, 2 * window.chunk_size, window.head_dim // 2)
    position = ints(4, 6, 5, 2, 3, 1).reshape(3, 2)
    out = launch(
        attention_inputs(phase, window, CPU()), z, v, gamma, beta, cos, sin, ints(*slots), position,
        *(np.zeros(shape, np.float32) for shape in (window.keys, window.values, window.keys)),
        np.zeros((n, 2, z_dim), np.float32), np.zeros((n, z_dim), np.float32),
    )  # fmt: skip
    for i in range(n):
        slot = slots[phase.sequence(i)]
        offset, parity = position[slot, 1] + phase.token(i), position[slot, 0] % 2
        queries, weights, k, ak = oracle(z[i], gamma, beta, cos, sin, offset, window.heads, rope_heads, window.eps)
        np.testing.assert_allclose(out[-2][i], queries, atol=2e-6)
        np.testing.assert_allclose(out[-1][i], weights, atol=1e-6)
        np.testing.assert_allclose(out[8][slot, parity, offset], k, atol=2e-6)
        np.testing.assert_array_equal(out[9][slot, parity, offset], v[i])
        np.testing.assert_allclose(out[10][slot, parity, offset], ak, atol=2e-6)
    # Rows written: n of each cache, no more.
    assert [(out[i] != 0).any(-1).sum() for i in (8, 9, 10)] == [n, n, n]
