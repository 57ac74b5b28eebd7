"""Writes of the cache of values."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cpus, floats, ints, launch

from gecko_mlc.tir_kernels.cpu import attention_inputs
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.value_cache import oracle, values_of
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window


@cpus
@pytest.mark.parametrize(("value_dim", "heads"), [(64, 2), (21, 3), (96, 1)])
def test_values_of_eight_bits(hardware: CPU, value_dim: int, heads: int) -> None:
    """Codes and scales are the oracle's to the bit: of halves between two codes, of heads of zeros, and of extremes."""
    rng, n, dv = np.random.default_rng(0), 6, value_dim // heads
    v = floats(rng, n, value_dim)
    v[1] = np.resize([127, 0.5, -0.5, 1.5, -2.5, 63.5, -127], value_dim)
    v[2, :dv] = 0
    v[3:] *= np.array([[1e30], [1e-38], [1e-45]], np.float32)
    window = Window(4 * heads, value_dim, heads, 0, 9, 2, 1e-5, "float32", "int8")
    kernel = attention_inputs.attention_inputs(Phase.PREFILL, window, hardware)
    keys, cos = np.zeros(window.keys, np.float32), np.zeros((18, 2), np.float32)
    slot, position = ints(1), ints(0, 0, 3, 2).reshape(2, 2)
    codes, scales = np.full(window.values, 99, np.int8), np.full(window.value_scales, np.nan, np.float32)
    codes, scales = launch(
        kernel, floats(rng, n, 4 * heads), v, *floats(rng, 2, 4, 4 * heads), cos, cos, slot, position,
        keys, codes, scales, keys, np.zeros((n, 2, 4 * heads), np.float32), np.zeros((n, 4 * heads), np.float32),
    )[9:11]  # fmt: skip
    expected = oracle(v, heads)
    np.testing.assert_array_equal(codes[1, 1, 2:8], expected[0])
    np.testing.assert_array_equal(scales[1, 1, 2:8], expected[1])
    assert (codes != 99).any(-1).sum() == np.isfinite(scales).all(-1).sum() == n
    # Half a code is the most that a value is off.
    error = np.abs(values_of(*expected) - v).reshape(n, heads, dv).max(-1)
    assert (error <= 0.5001 * expected[1] + 1e-30).all()
