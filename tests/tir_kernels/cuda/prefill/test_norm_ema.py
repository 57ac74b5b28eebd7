"""The EMA of successive tokens on a GPU against its oracle in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda
from support.norms import BETAS, EPS, assert_close, coefficients_of, ema_of, empty

from gecko_mlc.tir_kernels.cuda.prefill.norm_ema import norm_ema
from gecko_mlc.tir_kernels.oracles import complex_ema
from gecko_mlc.tir_kernels.shapes import EMA, TimestepNorm


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
    kernel = norm_ema(TimestepNorm(dim, groups, 3, 8, BETAS, EPS), EMA(dim, components, 3), dtype)
    launch_cuda(kernel, x, weight, bias, coefficients, moments, ints(1), ema, u, c)
    mean, scale = np.repeat(moments.astype(float), dim // groups, axis=0).transpose(2, 1, 0)
    normed = (x - mean) * scale * (1.0 + weight) + bias
    average, state = complex_ema.oracle(normed, coefficients.astype(float), before[1])
    assert_close(u, normed)
    assert_close(c, average)
    assert_close(ema[1], state)
    np.testing.assert_array_equal(ema[[0, 2]], before[[0, 2]])
