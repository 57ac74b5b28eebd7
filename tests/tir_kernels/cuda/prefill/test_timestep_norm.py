"""The timestep norm of successive tokens on a GPU against its oracle in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda
from support.norms import BETAS, EPS, assert_close, empty, moments_of

from gecko_mlc.tir_kernels.cuda.prefill import timestep_norm as cuda_timestep_norm
from gecko_mlc.tir_kernels.oracles import timestep_norm
from gecko_mlc.tir_kernels.shapes import TimestepNorm


# Groups of odd sizes and of several vectors a lane; tokens of the stream's begin, and more than a tile has.
@pytest.mark.parametrize(
    ("dim", "groups", "n", "chunk_size", "chunk", "offset", "dtype"),
    [
        (30, 6, 5, 7, 0, 0, "float32"),
        (64, 2, 65, 70, 3, 4, "bfloat16"),
        (21, 3, 1, 7, 2_000_000, 2, "float32"),
        (1040, 1, 300, 2048, 1, 9, "float16"),
        (8, 2, 2500, 4096, 0, 1, "float32"),
    ],
)
def test_timestep_norm_scan(
    dim: int, groups: int, n: int, chunk_size: int, chunk: int, offset: int, dtype: str
) -> None:
    rng = np.random.default_rng(1)
    x, (weight, bias) = 3 * floats(rng, n, dim) + 1, floats(rng, 2, dim)
    mean, var = moments_of(rng, groups) if chunk + offset else np.zeros((2, 3, groups), np.float32)
    position, count = ints(0, 0, chunk, offset, 9, 9).reshape(3, 2), chunk * chunk_size + offset
    states = [(mean.copy(), var.copy()) for _ in range(2)]
    moments, y, last = empty(groups, n, 2), empty(n, dim, dtype=dtype), empty(1, dim)
    norm = TimestepNorm(dim, groups, 3, chunk_size, BETAS, EPS)
    launch_cuda(cuda_timestep_norm.timestep_norm_moments(norm), x, ints(1), position, *states[0], moments)
    launch_cuda(cuda_timestep_norm.timestep_norm(norm, dtype), x, weight, bias, moments, y)
    launch_cuda(cuda_timestep_norm.last_timestep_norm(norm), x, weight, bias, ints(1), position, *states[1], last)
    expected, new_mean, new_var = timestep_norm.oracle(
        x.astype(float), mean[1].astype(float), var[1].astype(float), count, weight, bias, BETAS, EPS
    )
    assert_close(y, expected)
    assert_close(last[0], expected[-1])
    for state in states:
        assert_close(state[0][1], new_mean)
        assert_close(state[1][1], new_var)
        np.testing.assert_array_equal([s[[0, 2]] for s in state], [mean[[0, 2]], var[[0, 2]]])
