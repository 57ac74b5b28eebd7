"""Elements of weight matrices, however they lie in memory."""

import numpy as np
import pytest
from support.launch import floats, launch
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.weights import weight_loader

OUTPUTS, INPUTS = 19, 90


def loaded(weights: WeightFormat, stored: np.ndarray) -> np.ndarray:
    """The matrix [OUTPUTS, INPUTS] as a kernel reads it."""
    load = weight_loader(weights, INPUTS)

    @kernel
    def compute(
        weight: T.Buffer(weights.shape(OUTPUTS, INPUTS), weights.dtype), y: T.Buffer((OUTPUTS, INPUTS), "float32")
    ):
        for o, k in T.grid(OUTPUTS, INPUTS):
            y[o, k] = load(weight, o, k)

    return launch(compute, stored, np.zeros((OUTPUTS, INPUTS), np.float32))[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_plain_weights(dtype: str) -> None:
    weight = floats(np.random.default_rng(0), OUTPUTS, INPUTS).astype(dtype)
    np.testing.assert_array_equal(loaded(Dense(dtype), weight), weight)


@pytest.mark.parametrize("lanes", [1, 8, 16])
@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])
def test_quantized_weights(scheme: str, lanes: int) -> None:
    group = QUANTIZATIONS[scheme].group
    layout = GroupLayout(quantization=group, lanes=lanes, code_bits=4 if group.bits == 3 and lanes > 1 else group.bits)
    quantized = group.quantize(floats(np.random.default_rng(1), OUTPUTS, INPUTS))
    expected = group.dequantize(*quantized, INPUTS)
    np.testing.assert_array_equal(loaded(layout, layout.pack(*quantized, INPUTS)), expected)
