"""Timestep norm and EMA of one token on a GPU against their oracles in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import assert_rounded, launch_cuda
from support.norms import BETAS, EPS, assert_close, coefficients_of, ema_of, empty, moments_of
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.decode.norm_ema import norm_ema, quantized_output
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.oracles import complex_ema, timestep_norm
from gecko_mlc.tir_kernels.shapes import EMA, TimestepNorm


@pytest.mark.parametrize(("dim", "groups", "components"), [(30, 5, 3), (1040, 1, 2), (36, 3, 16)])
def test_norm_ema(dim: int, groups: int, components: int) -> None:
    rng, chunk_size, slots = np.random.default_rng(2), 7, ints(2, 0)
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    coefficients, ema = coefficients_of(rng, components, dim), ema_of(rng, components, dim)
    mean, var = moments_of(rng, groups)
    before, u, c = (mean.copy(), var.copy(), ema.copy()), empty(2, dim), empty(2, dim)
    position = ints(0, 0, 9, 9, 4, 3).reshape(3, 2)
    kernel = norm_ema(TimestepNorm(dim, groups, 3, chunk_size, BETAS, EPS), EMA(dim, components, 3))
    launch_cuda(kernel, x, weight, bias, coefficients, slots, position, mean, var, ema, u, c)
    for row, slot in enumerate(slots):
        count = position[slot, 0] * chunk_size + position[slot, 1]
        normed, new_mean, new_var = timestep_norm.oracle(
            x[row : row + 1].astype(float), before[0][slot], before[1][slot], count, weight, bias, BETAS, EPS
        )
        average, state = complex_ema.oracle(normed, coefficients.astype(float), before[2][slot])
        assert_close(u[row], normed[0])
        assert_close(c[row], average[0])
        assert_close(mean[slot], new_mean)
        assert_close(var[slot], new_var)
        assert_close(ema[slot], state)
    for result, old in zip((mean, var, ema), before, strict=True):
        np.testing.assert_array_equal(result[1], old[1])


# Blocks of one vector and of more, with threads of one warp and of several.
@pytest.mark.parametrize(
    ("dim", "groups", "components", "scheme", "affine"),
    [(128, 4, 3, "q4f16_1", True), (384, 3, 16, "q4f32_1", False), (320, 4, 5, "q8f16_1", True)],
)
def test_norm_ema_quantizes(dim: int, groups: int, components: int, scheme: str, affine: bool) -> None:
    """As it makes them; c with the gain of the norm after it, and the squares that it needs."""
    rng, chunk_size, slots = np.random.default_rng(2), 7, ints(2, 0)
    shape = TimestepNorm(dim, groups, 3, chunk_size, BETAS, EPS), EMA(dim, components, 3)
    outgoing = quantized_output(shape[0], 1, Matrices(format_of(scheme), 1, CUDA((80,))))
    assert outgoing is not None
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    coefficients, ema, gain = coefficients_of(rng, components, dim), ema_of(rng, components, dim), floats(rng, dim)
    state, position = (*moments_of(rng, groups), ema), ints(0, 0, 9, 9, 4, 3).reshape(3, 2)
    inputs = x, weight, bias, coefficients, slots, position
    u, c = empty(2, dim), empty(2, dim)
    launch_cuda(norm_ema(*shape), *inputs, *(s.copy() for s in state), u, c)
    results = [np.full((2, outgoing.words), 0xFFFFFFFF, np.uint32) for _ in range(2)]
    kernel = norm_ema(*shape, outgoing, affine)
    launch_cuda(kernel, *inputs, *state, *[gain] * affine, *results, outgoing=outgoing)
    assert_rounded(outgoing, results[0], u.astype(float))
    assert_rounded(outgoing, results[1], c.astype(float) * (1 + gain * affine))
    squares = results[1].view(np.float32)[:, outgoing.floats(3) :][:, :groups]
    assert_close(squares, (c.reshape(2, groups, -1).astype(float) ** 2).sum(-1))
