"""Complex moving averages against the oracle in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cpus, floats, ints, launch

from gecko_mlc.tir_kernels.cpu.complex_ema import complex_ema
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.complex_ema import oracle
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import EMA


@cpus
@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0, 1))])
def test_complex_ema(hardware: CPU, phase: Phase, slots: tuple[int, ...]) -> None:
    rng, dim, components, n = np.random.default_rng(2), 40, 3, 3 if phase is Phase.DECODE else 63
    u, state = floats(rng, n, dim), floats(rng, 3, 2, components, dim)
    coefficients = rng.uniform(-0.6, 0.6, (5, components, dim)).astype(np.float32)
    kernel = complex_ema(phase, EMA(dim, components, 3), hardware)
    out = launch(kernel, u, coefficients, ints(*slots), state, np.zeros_like(u))
    for sequence, slot in enumerate(slots):
        part = slice(None) if phase is Phase.PREFILL else slice(sequence, sequence + 1)
        y, h = oracle(u[part].astype(float), coefficients.astype(float), state[slot])
        np.testing.assert_allclose(out[4][part], y, atol=1e-5)
        np.testing.assert_allclose(out[3][slot], h, atol=1e-5)
