"""Linear layers of prefill and the gate on a GPU against the oracle, at sizes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
from support.gemm import BF16, BOTH, SM_86, SM_90, activations, assert_close, empty, launch_in, matrix
from support.launch import floats
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemm.launches import DEQUANTIZE_FIRST_ROWS
from gecko_mlc.tir_kernels.cuda.prefill import linear
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.oracles.linear import oracle

# Rows, inputs, outputs, scheme of the weights, hardware.
SIMT, SIMT_16_BIT = (67, 50, 66, "q0f32", BOTH), (5, 33, 131, "q0f16", SM_90)
WIDE, DEEP, SMALL = (259, 200, 130, "q0bf16", BOTH), (3, 328, 137, "q0f16", SM_90), (129, 64, 10, "q0bf16", SM_86)
SIMT_QUANTIZED, SIMT_ODD = (67, 50, 66, "q4f32_1", BOTH), (5, 47, 131, "q3f16_1", SM_90)
QUANTIZED = [
    (259, 456, 130, "q4f16_1", BOTH),
    (3, 136, 259, "q4f16_1", SM_90),
    (3, 688, 137, "q3f16_1", SM_90),
    (129, 40, 10, "q3f16_1", SM_86),
    (3, 136, 137, "q8f16_1", SM_90),
    (DEQUANTIZE_FIRST_ROWS + 1, 72, 131, "q4f16_1", SM_90),
    (DEQUANTIZE_FIRST_ROWS, 40, 10, "q3f16_1", SM_86),
]
cases = pytest.mark.parametrize(
    ("n", "inputs", "outputs", "scheme", "hardware"),
    [SIMT, SIMT_16_BIT, WIDE, DEEP, SMALL, SIMT_QUANTIZED, SIMT_ODD, *QUANTIZED],
)


def test_linear() -> None:
    rng = np.random.default_rng(0)
    x, (memory, weight), y = floats(rng, 70, 72).astype(BF16), matrix(rng, 33, 72, "q0bf16"), empty(70, 33)
    launch_in(linear.linear(72, 33, format_of("q0bf16"), BOTH), x, memory, y)
    assert_close(y, oracle(x.astype(float), weight))


@cases
def test_linear_residual(n: int, inputs: int, outputs: int, scheme: str, hardware: CUDA) -> None:
    rng, scaled = np.random.default_rng(1), hardware is BOTH
    x, (memory, weight) = floats(rng, n, inputs).astype(activations(scheme)), matrix(rng, outputs, inputs, scheme)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, n, outputs)]
    y = empty(n, outputs)
    launch_in(linear.linear_residual(inputs, outputs, format_of(scheme), scaled, hardware), x, memory, *operands, y)
    assert_close(y, oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual"))


@cases
def test_gate(n: int, inputs: int, outputs: int, scheme: str, hardware: CUDA) -> None:
    rng, swiglu = np.random.default_rng(2), hardware is not SM_86
    u = floats(rng, n, inputs).astype(activations(scheme))
    (memory1, fc1), (memory3, fc3) = (matrix(rng, outputs, inputs, scheme) for _ in range(2))
    y = empty(n, outputs, u.dtype)
    launch_in(linear.gate(inputs, outputs, swiglu, format_of(scheme), hardware), u, memory1, *[memory3] * swiglu, y)
    expected = oracle(u.astype(float), fc1, activation="silu")
    assert_close(y, oracle(u.astype(float), fc3, expected, epilogue="gate") if swiglu else expected)
