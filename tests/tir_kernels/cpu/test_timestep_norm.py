"""Timestep decay norm, of a piece and of a step."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cpus, floats, ints, launch

from gecko_mlc.tir_kernels.cpu.timestep_norm import timestep_norm
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.timestep_norm import oracle
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import TimestepNorm

BETAS, EPS = (0.999, 0.9999), 1e-5


@cpus
@pytest.mark.parametrize(("dim", "groups"), [(30, 15), (64, 2), (21, 3)])
@pytest.mark.parametrize("chunk", [0, 3, 2_000_000])
def test_a_piece_is_a_scan(hardware: CPU, dim: int, groups: int, chunk: int) -> None:
    rng, chunk_size, offset = np.random.default_rng(0), 7, 2
    x, (weight, bias) = 3 * floats(rng, 5, dim) + 1, floats(rng, 2, dim)
    mean, var = floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2
    count = chunk * chunk_size + offset
    kernel = timestep_norm(Phase.PREFILL, TimestepNorm(dim, groups, 3, chunk_size, BETAS, EPS), hardware)
    position = ints(0, 0, chunk, offset, 9, 9).reshape(3, 2)
    out = launch(kernel, x, weight, bias, ints(1), position, mean, var, np.zeros_like(x))
    y, new_mean, new_var = oracle(
        x.astype(float), mean[1].astype(float), var[1].astype(float), count, weight, bias, BETAS, EPS
    )
    np.testing.assert_allclose(out[7], y, atol=2e-5)
    np.testing.assert_allclose(out[5][1], new_mean, atol=2e-6)
    np.testing.assert_allclose(out[6][1], new_var, rtol=2e-6)
    np.testing.assert_array_equal(out[5][[0, 2]], mean[[0, 2]])


@cpus
def test_a_step_is_a_scan_of_one(hardware: CPU) -> None:
    rng, dim, groups = np.random.default_rng(1), 30, 5
    x, (weight, bias) = floats(rng, 2, dim), floats(rng, 2, dim)
    mean, var = floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2
    position = ints(1, 6, 0, 0, 4, 2).reshape(3, 2)
    kernel = timestep_norm(Phase.DECODE, TimestepNorm(dim, groups, 3, 7, BETAS, EPS), hardware)
    out = launch(kernel, x, weight, bias, ints(2, 0), position, mean, var, np.zeros_like(x))
    for row, slot in enumerate((2, 0)):
        count = position[slot, 0] * 7 + position[slot, 1]
        y, *_ = oracle(x[row : row + 1], mean[slot], var[slot], count, weight, bias, BETAS, EPS)
        np.testing.assert_allclose(out[7][row], y[0], atol=1e-5)
