"""RMS norm and layer norm of groups, with and without a gain and a shift."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import cpus, floats, launch

from gecko_mlc.tir_kernels.cpu.group_norm import layer_norm, rms_norm
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.group_norm import layer_norm_oracle, rms_norm_oracle
from gecko_mlc.tir_kernels.shapes import GroupNorm

EPS = 1e-5


@cpus
@pytest.mark.parametrize(("dim", "groups"), [(30, 2), (64, 1), (21, 7)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms(hardware: CPU, dim: int, groups: int, affine: bool) -> None:
    rng, norm = np.random.default_rng(3), GroupNorm(dim, groups, EPS, affine)
    x = 3 * floats(rng, 7, dim) + 1
    weight, bias = floats(rng, 2, dim) if affine else np.zeros((2, dim), np.float32)
    y = launch(rms_norm(norm, hardware), x, *[weight] * affine, np.zeros_like(x))[-1]
    np.testing.assert_allclose(y, rms_norm_oracle(x, weight, groups, EPS), atol=1e-5)
    y = launch(layer_norm(norm, hardware), x, *[weight, bias] * affine, np.zeros_like(x))[-1]
    np.testing.assert_allclose(y, layer_norm_oracle(x, weight, bias, groups, EPS), atol=1e-5)
