"""Timestep norm, group norms and EMA on a GPU against their oracles in float64."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import assert_rounded, launch_cuda
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda import complex_ema as cuda_complex_ema
from gecko_mlc.tir_kernels.cuda import timestep_norm as cuda_timestep_norm
from gecko_mlc.tir_kernels.cuda.prefill import group_norm as cuda_group_norm
from gecko_mlc.tir_kernels.oracles import complex_ema, group_norm, timestep_norm

BETAS, EPS = (0.999, 0.9999), 1e-5
# Of a result: the distance of two neighbours of its dtype, relative.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def empty(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.full(shape, np.nan, dtype)


def assert_close(result: np.ndarray, expected: np.ndarray, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(result.astype(float), expected, rtol=PRECISION[result.dtype.name], atol=atol)


def moments_of(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of 3 slots."""
    return floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2


@pytest.mark.parametrize(("dim", "groups"), [(30, 15), (165, 3)])
def test_timestep_norm_step(dim: int, groups: int) -> None:
    rng, chunk_size, slots = np.random.default_rng(0), 7, ints(2, 0)
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    mean, var = moments_of(rng, groups)
    before, y = (mean.copy(), var.copy()), empty(2, dim)
    position = ints(0, 0, 9, 9, 2_000_000, 3).reshape(3, 2)
    kernel = cuda_timestep_norm.timestep_norm_step(dim, groups, 3, chunk_size, BETAS, EPS)
    launch_cuda(kernel, x, weight, bias, slots, position, mean, var, y)
    for row, slot in enumerate(slots):
        count = position[slot, 0] * chunk_size + position[slot, 1]
        expected = timestep_norm.oracle(
            x[row : row + 1].astype(float), before[0][slot], before[1][slot], count, weight, bias, BETAS, EPS
        )
        for result, e in zip((y[row], mean[slot], var[slot]), (expected[0][0], *expected[1:]), strict=True):
            assert_close(result, e)
    np.testing.assert_array_equal((mean[1], var[1]), (before[0][1], before[1][1]))


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
    arguments = dim, groups, 3, chunk_size, BETAS, EPS
    launch_cuda(cuda_timestep_norm.timestep_norm_moments(*arguments), x, ints(1), position, *states[0], moments)
    launch_cuda(cuda_timestep_norm.timestep_norm(dim, groups, dtype), x, weight, bias, moments, y)
    launch_cuda(cuda_timestep_norm.last_timestep_norm(*arguments), x, weight, bias, ints(1), position, *states[1], last)
    expected, new_mean, new_var = timestep_norm.oracle(
        x.astype(float), mean[1].astype(float), var[1].astype(float), count, weight, bias, BETAS, EPS
    )
    assert_close(y, expected)
    assert_close(last[0], expected[-1])
    for state in states:
        assert_close(state[0][1], new_mean)
        assert_close(state[1][1], new_var)
        np.testing.assert_array_equal([s[[0, 2]] for s in state], [mean[[0, 2]], var[[0, 2]]])


def coefficients_of(rng: np.random.Generator, components: int, dim: int) -> np.ndarray:
    """Of an EMA that forgets; its first component takes nothing in."""
    coefficients = rng.uniform(-0.6, 0.6, (5, components, dim)).astype(np.float32)
    coefficients[2] = rng.uniform(0.1, 0.9, (components, dim))
    coefficients[2, 0, 0] = 0
    return coefficients


def ema_of(rng: np.random.Generator, components: int, dim: int) -> np.ndarray:
    """States of 3 slots; where nothing was taken in there is nothing."""
    ema = floats(rng, 3, 2, components, dim)
    ema[:, :, 0, 0] = 0
    return ema


@pytest.mark.parametrize(("dim", "groups", "components"), [(30, 5, 3), (1040, 1, 2), (36, 3, 16)])
def test_norm_ema_step(dim: int, groups: int, components: int) -> None:
    rng, chunk_size, slots = np.random.default_rng(2), 7, ints(2, 0)
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    coefficients, ema = coefficients_of(rng, components, dim), ema_of(rng, components, dim)
    mean, var = moments_of(rng, groups)
    before, u, c = (mean.copy(), var.copy(), ema.copy()), empty(2, dim), empty(2, dim)
    position = ints(0, 0, 9, 9, 4, 3).reshape(3, 2)
    kernel = cuda_complex_ema.norm_ema_step(dim, groups, components, 3, chunk_size, BETAS, EPS)
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
def test_norm_ema_step_rounds(dim: int, groups: int, components: int, scheme: str, affine: bool) -> None:
    """As it makes them; c with the gain of the norm after it, and the squares that it needs."""
    rng, chunk_size, slots = np.random.default_rng(2), 7, ints(2, 0)
    outgoing = cuda_complex_ema.rounded_norm_ema(dim, groups, 1, format_of(scheme), 1)
    assert outgoing is not None
    x, (weight, bias) = 3 * floats(rng, 2, dim) + 1, floats(rng, 2, dim)
    coefficients, ema, gain = coefficients_of(rng, components, dim), ema_of(rng, components, dim), floats(rng, dim)
    state, position = (*moments_of(rng, groups), ema), ints(0, 0, 9, 9, 4, 3).reshape(3, 2)
    inputs = x, weight, bias, coefficients, slots, position
    shape = dim, groups, components, 3, chunk_size, BETAS, EPS
    u, c = empty(2, dim), empty(2, dim)
    launch_cuda(cuda_complex_ema.norm_ema_step(*shape), *inputs, *(s.copy() for s in state), u, c)
    results = [np.full((2, outgoing.words), 0xFFFFFFFF, np.uint32) for _ in range(2)]
    kernel = cuda_complex_ema.norm_ema_step(*shape, outgoing, affine)
    launch_cuda(kernel, *inputs, *state, *[gain] * affine, *results, outgoing=outgoing)
    assert_rounded(outgoing, results[0], u.astype(float))
    assert_rounded(outgoing, results[1], c.astype(float) * (1 + gain * affine))
    squares = results[1].view(np.float32)[:, outgoing.floats(3) :][:, :groups]
    assert_close(squares, (c.reshape(2, groups, -1).astype(float) ** 2).sum(-1))


@pytest.mark.parametrize(
    ("dim", "groups", "components", "n", "dtype"),
    [
        (40, 5, 3, 63, "float32"),
        (21, 3, 16, 130, "bfloat16"),
        (66, 1, 65, 9, "float16"),
        (4096, 64, 16, 5, "float32"),
    ],
)
def test_norm_ema(dim: int, groups: int, components: int, n: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, (weight, bias) = floats(rng, n, dim), floats(rng, 2, dim)
    moments = np.stack([floats(rng, groups, n), 0.5 + rng.random((groups, n), np.float32)], axis=-1)
    coefficients, ema = coefficients_of(rng, components, dim), ema_of(rng, components, dim)
    before, u, c = ema.copy(), empty(n, dim, dtype=dtype), empty(n, dim)
    kernel = cuda_complex_ema.norm_ema(dim, groups, components, 3, dtype)
    launch_cuda(kernel, x, weight, bias, coefficients, moments, ints(1), ema, u, c)
    mean, scale = np.repeat(moments.astype(float), dim // groups, axis=0).transpose(2, 1, 0)
    normed = (x - mean) * scale * (1.0 + weight) + bias
    average, state = complex_ema.oracle(normed, coefficients.astype(float), before[1])
    assert_close(u, normed)
    assert_close(c, average)
    assert_close(ema[1], state)
    np.testing.assert_array_equal(ema[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize(
    ("dim", "groups", "dtype"), [(30, 2, "float32"), (21, 7, "float16"), (2056, 1, "float16"), (2312, 2, "bfloat16")]
)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms(dim: int, groups: int, dtype: str, affine: bool) -> None:
    rng = np.random.default_rng(4)
    x, parameters = 3 * floats(rng, 3, dim) + 1, floats(rng, 2, dim) * np.float32(affine)
    rms, layer = empty(3, dim, dtype=dtype), empty(3, dim, dtype=dtype)
    launch_cuda(cuda_group_norm.rms_norm(dim, groups, EPS, affine, dtype), x, *parameters[:affine], rms)
    launch_cuda(cuda_group_norm.layer_norm(dim, groups, EPS, affine, dtype), x, *parameters[: 2 * affine], layer)
    assert_close(rms, group_norm.rms_norm_oracle(x.astype(float), parameters[0], groups, EPS))
    assert_close(layer, group_norm.layer_norm_oracle(x.astype(float), *parameters, groups, EPS))
