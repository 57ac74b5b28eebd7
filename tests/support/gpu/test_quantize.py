"""Quantization on the GPU gives the bytes of the package's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.quantization import QUANTIZATIONS
from support.gpu.quantize import quantize


@pytest.mark.parametrize("scheme", [name for name, scheme in QUANTIZATIONS.items() if scheme.group])
@pytest.mark.parametrize("shape", [(5, 70), (3, 7), (16, 64)])
@pytest.mark.parametrize("lanes", [1, 8])
def test_quantized_as_the_package_does(scheme: str, shape: tuple[int, int], lanes: int) -> None:
    group = QUANTIZATIONS[scheme].group
    layout = GroupLayout(quantization=group, lanes=lanes, code_bits=group.bits)
    weight = np.random.default_rng(0).standard_normal(shape).astype(group.scale_dtype)
    weight[0] = 0
    packed, values = quantize(layout, torch.from_numpy(weight))
    q_weight, q_scale = group.quantize(weight)
    np.testing.assert_array_equal(packed.numpy(), layout.pack(q_weight, q_scale, shape[1]))
    np.testing.assert_array_equal(values, group.dequantize(q_weight, q_scale, shape[1]).astype(group.scale_dtype))
