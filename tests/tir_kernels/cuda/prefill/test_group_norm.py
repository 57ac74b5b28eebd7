"""Group norms on a GPU against their oracles in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats
from support.launch_cuda import launch_cuda
from support.norms import EPS, assert_close, empty

from gecko_mlc.tir_kernels.cuda.prefill import group_norm as cuda_group_norm
from gecko_mlc.tir_kernels.oracles import group_norm
from gecko_mlc.tir_kernels.shapes import GroupNorm


@pytest.mark.parametrize(
    ("dim", "groups", "dtype"), [(30, 2, "float32"), (21, 7, "float16"), (2056, 1, "float16"), (2312, 2, "bfloat16")]
)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms(dim: int, groups: int, dtype: str, affine: bool) -> None:
    rng, norm = np.random.default_rng(4), GroupNorm(dim, groups, EPS, affine)
    x, parameters = 3 * floats(rng, 3, dim) + 1, floats(rng, 2, dim) * np.float32(affine)
    rms, layer = empty(3, dim, dtype=dtype), empty(3, dim, dtype=dtype)
    launch_cuda(cuda_group_norm.rms_norm(norm, dtype), x, *parameters[:affine], rms)
    launch_cuda(cuda_group_norm.layer_norm(norm, dtype), x, *parameters[: 2 * affine], layer)
    assert_close(rms, group_norm.rms_norm_oracle(x.astype(float), parameters[0], groups, EPS))
    assert_close(layer, group_norm.layer_norm_oracle(x.astype(float), *parameters, groups, EPS))
