"""Weights as kernels take them, of every scheme."""

from __future__ import annotations

import numpy as np

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.weights import NUMPY_DTYPES
from support.launch import floats


def format_of(scheme: str) -> WeightFormat:
    """How a GPU has matrices of a scheme in memory."""
    group = quantization(scheme).group
    if group is None:
        return Dense(quantization(scheme).model_dtype)
    return GroupLayout(quantization=group, lanes=1, code_bits=group.bits)


def weights_in_memory(
    rng: np.random.Generator, outputs: int, inputs: int, scheme: str
) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix [out, in], as it lies in memory and as what it stands for there."""
    weight, weights = floats(rng, outputs, inputs) / np.float32(np.sqrt(inputs)), format_of(scheme)
    if isinstance(weights, Dense):
        rounded = weight.astype(NUMPY_DTYPES[weights.dtype])
        return rounded, rounded
    codes, scales = weights.quantization.quantize(weight)
    return weights.pack(codes, scales, inputs), weights.quantization.dequantize(codes, scales, inputs)
