"""Timestep norm, group norms and EMA against their oracles in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints, launch, machines

from gecko_mlc.tir_kernels.cpu import complex_ema, group_norm, timestep_norm
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles import complex_ema as complex_ema_oracle
from gecko_mlc.tir_kernels.oracles import group_norm as group_norm_oracle
from gecko_mlc.tir_kernels.oracles import timestep_norm as timestep_norm_oracle
from gecko_mlc.tir_kernels.phase import Phase

BETAS, EPS = (0.999, 0.9999), 1e-5


@machines
@pytest.mark.parametrize(("dim", "groups"), [(30, 15), (64, 2), (21, 3)])
@pytest.mark.parametrize("chunk", [0, 3, 2_000_000])
def test_timestep_norm_scan(machine: CPU, dim: int, groups: int, chunk: int) -> None:
    rng, chunk_size, offset = np.random.default_rng(0), 7, 2
    x, (weight, bias) = 3 * floats(rng, 5, dim) + 1, floats(rng, 2, dim)
    mean, var = floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2
    count = chunk * chunk_size + offset
    kernel = timestep_norm.timestep_norm(Phase.PREFILL, dim, groups, 3, chunk_size, BETAS, EPS, machine)
    position = ints(0, 0, chunk, offset, 9, 9).reshape(3, 2)
    out = launch(kernel, x, weight, bias, ints(1), position, mean, var, np.zeros_like(x))
    y, new_mean, new_var = timestep_norm_oracle.oracle(
        x.astype(float), mean[1].astype(float), var[1].astype(float), count, weight, bias, BETAS, EPS
    )
    np.testing.assert_allclose(out[7], y, atol=2e-5)
    np.testing.assert_allclose(out[5][1], new_mean, atol=2e-6)
    np.testing.assert_allclose(out[6][1], new_var, rtol=2e-6)
    np.testing.assert_array_equal(out[5][[0, 2]], mean[[0, 2]])


@machines
def test_timestep_norm_step_is_a_scan_of_one(machine: CPU) -> None:
    rng, dim, groups = np.random.default_rng(1), 30, 5
    x, (weight, bias) = floats(rng, 2, dim), floats(rng, 2, dim)
    mean, var = floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2
    position = ints(1, 6, 0, 0, 4, 2).reshape(3, 2)
    kernel = timestep_norm.timestep_norm(Phase.DECODE, dim, groups, 3, 7, BETAS, EPS, machine)
    out = launch(kernel, x, weight, bias, ints(2, 0), position, mean, var, np.zeros_like(x))
    for row, slot in enumerate((2, 0)):
        count = position[slot, 0] * 7 + position[slot, 1]
        y, *_ = timestep_norm_oracle.oracle(x[row : row + 1], mean[slot], var[slot], count, weight, bias, BETAS, EPS)
        np.testing.assert_allclose(out[7][row], y[0], atol=1e-5)


@machines
@pytest.mark.parametrize(("phase", "slots"), [(Phase.PREFILL, (1,)), (Phase.DECODE, (2, 0, 1))])
def test_complex_ema(machine: CPU, phase: Phase, slots: tuple[int, ...]) -> None:
    rng, dim, components, n = np.random.default_rng(2), 40, 3, 3 if phase is Phase.DECODE else 63
    u, state = floats(rng, n, dim), floats(rng, 3, 2, components, dim)
    coefficients = rng.uniform(-0.6, 0.6, (5, components, dim)).astype(np.float32)
    kernel = complex_ema.complex_ema(phase, dim, components, 3, machine)
    out = launch(kernel, u, coefficients, ints(*slots), state, np.zeros_like(u))
    for sequence, slot in enumerate(slots):
        part = slice(None) if phase is Phase.PREFILL else slice(sequence, sequence + 1)
        y, h = complex_ema_oracle.oracle(u[part].astype(float), coefficients.astype(float), state[slot])
        np.testing.assert_allclose(out[4][part], y, atol=1e-5)
        np.testing.assert_allclose(out[3][slot], h, atol=1e-5)


@machines
@pytest.mark.parametrize(("dim", "groups"), [(30, 2), (64, 1), (21, 7)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms(machine: CPU, dim: int, groups: int, affine: bool) -> None:
    rng = np.random.default_rng(3)
    x = 3 * floats(rng, 7, dim) + 1
    weight, bias = floats(rng, 2, dim) if affine else np.zeros((2, dim), np.float32)
    rms = launch(group_norm.rms_norm(dim, groups, EPS, affine, machine), x, *[weight] * affine, np.zeros_like(x))[-1]
    np.testing.assert_allclose(rms, group_norm_oracle.rms_norm_oracle(x, weight, groups, EPS), atol=1e-5)
    layer = launch(
        group_norm.layer_norm(dim, groups, EPS, affine, machine),
        x,
        *[weight, bias] * affine,
        np.zeros_like(x),
    )[-1]
    np.testing.assert_allclose(layer, group_norm_oracle.layer_norm_oracle(x, weight, bias, groups, EPS), atol=1e-5)
