"""The timestep norm of one token on a GPU against its oracle in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda
from support.norms import BETAS, EPS, assert_close, empty, moments_of

from gecko_mlc.tir_kernels.cuda.decode.timestep_norm import timestep_norm as timestep_norm_step
from gecko_mlc.tir_kernels.oracles import timestep_norm
from gecko_mlc.tir_kernels.shapes import TimestepNorm


@pytest.mark.parametrize(("dim", "groups"), [(30, 15), (165, 3)])
def test_timestep_norm_step(dim: int, groups: int) -> None:
    rng, chunk_size, slots = np.random.default_rng(0), 7, ints(2, 0)
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    mean, var = moments_of(rng, groups)
    before, y = (mean.copy(), var.copy()), empty(2, dim)
    position = ints(0, 0, 9, 9, 2_000_000, 3).reshape(3, 2)
    kernel = timestep_norm_step(TimestepNorm(dim, groups, 3, chunk_size, BETAS, EPS))
    launch_cuda(kernel, x, weight, bias, slots, position, mean, var, y)
    for row, slot in enumerate(slots):
        count = position[slot, 0] * chunk_size + position[slot, 1]
        expected = timestep_norm.oracle(
            x[row : row + 1].astype(float), before[0][slot], before[1][slot], count, weight, bias, BETAS, EPS
        )
        for result, e in zip((y[row], mean[slot], var[slot]), (expected[0][0], *expected[1:]), strict=True):
            assert_close(result, e)
    np.testing.assert_array_equal((mean[1], var[1]), (before[0][1], before[1][1]))
