"""Matrix products of prefill on a GPU against the oracle, at sizes that fill no tile.

Tensor cores are those of the GPUs before sm_90: its `wgmma` is not executed here. What surrounds it is, with the
stages of its pipeline.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gecko_mlc.tir_kernels.cuda import linear
from gecko_mlc.tir_kernels.linear import oracle
from gecko_mlc.tir_kernels.machine import CUDA
from launch import floats, ints
from launch_cuda import launch_cuda

from gecko_mlc.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.quantization import QUANTIZATIONS

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
BOTH, SM_90, SM_86 = CUDA((80, 90)), CUDA((90,)), CUDA((86,))
F32_DENSE, F16_DENSE, BF16_DENSE = (Dense(dtype.name) for dtype in (F32, F16, BF16))
Q3, Q4, Q8, Q4_F32 = (
    GroupLayout(quantization=group, lanes=1, code_bits=group.bits)
    for group in (QUANTIZATIONS[name].group for name in ("q3f16_1", "q4f16_1", "q8f16_1", "q4f32_1"))
    if group is not None
)
# Rows, inputs, outputs, format of the weights, machine.
PLAIN, PLAIN_16_BIT = (67, 50, 66, F32_DENSE, BOTH), (5, 33, 131, F16_DENSE, SM_90)
WIDE, DEEP, SMALL = (259, 200, 130, BF16_DENSE, BOTH), (3, 328, 137, F16_DENSE, SM_90), (129, 64, 10, BF16_DENSE, SM_86)
PLAIN_QUANTIZED, PLAIN_ODD = (67, 50, 66, Q4_F32, BOTH), (5, 47, 131, Q3, SM_90)
QUANTIZED = [(259, 456, 130, Q4, BOTH), (3, 688, 137, Q3, SM_90), (3, 136, 259, Q8, SM_90), (129, 40, 10, Q3, SM_86)]
cases = pytest.mark.parametrize(
    ("n", "inputs", "outputs", "weights", "machine"),
    [PLAIN, PLAIN_16_BIT, WIDE, DEEP, SMALL, PLAIN_QUANTIZED, PLAIN_ODD, *QUANTIZED],
)


def matrix(rng: np.random.Generator, rows: int, inputs: int, weights: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """A weight in memory, and the numbers that stand for it: of 16 bits, where tensor cores multiply."""
    value = floats(rng, rows, inputs) / np.float32(np.sqrt(inputs))
    if isinstance(weights, Dense):
        return (rounded := value.astype(weights.dtype)), rounded
    group = weights.quantization
    codes = group.quantize(value)
    numbers = group.dequantize(*codes, inputs)
    return weights.pack(*codes, inputs), numbers if inputs % 8 else numbers.astype(weights.arithmetic)


def empty(rows: int, columns: int, dtype: Any = F32) -> np.ndarray:
    return np.full((rows, columns), np.nan, dtype)


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """Sums are fp32; what is stored in 16 bits has been rounded once."""
    eps = 0 if result.dtype == F32 else float(ml_dtypes.finfo(result.dtype).eps)
    np.testing.assert_allclose(result.astype(float), expected, rtol=eps, atol=1e-5)


def test_linear() -> None:
    rng = np.random.default_rng(0)
    x, (memory, weight), y = floats(rng, 70, 72).astype(BF16), matrix(rng, 33, 72, BF16_DENSE), empty(70, 33)
    launch_cuda(linear.linear(72, 33, BF16_DENSE, BOTH), x, memory, y)
    assert_close(y, oracle(x.astype(float), weight))


@cases
def test_linear_residual(n: int, inputs: int, outputs: int, weights: WeightFormat, machine: CUDA) -> None:
    rng, scaled = np.random.default_rng(1), machine is BOTH
    x, (memory, weight) = floats(rng, n, inputs).astype(weights.arithmetic), matrix(rng, outputs, inputs, weights)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, n, outputs)]
    y = empty(n, outputs)
    launch_cuda(linear.linear_residual(inputs, outputs, weights, scaled, machine), x, memory, *operands, y)
    assert_close(y, oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual"))


@cases
def test_gate(n: int, inputs: int, outputs: int, weights: WeightFormat, machine: CUDA) -> None:
    rng, swiglu = np.random.default_rng(2), machine is not SM_86
    u = floats(rng, n, inputs).astype(weights.arithmetic)
    (memory1, fc1), (memory3, fc3) = (matrix(rng, outputs, inputs, weights) for _ in range(2))
    y = empty(n, outputs, u.dtype)
    launch_cuda(linear.gate(inputs, outputs, swiglu, weights, machine), u, memory1, *[memory3] * swiglu, y)
    expected = oracle(u.astype(float), fc1, activation="silu")
    assert_close(y, oracle(u.astype(float), fc3, expected, epilogue="gate") if swiglu else expected)


@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "weights", "cache_dtype"),
    [
        (67, 50, 66, F32_DENSE, F32),
        (5, 33, 131, F16_DENSE, F32),
        (259, 200, 130, BF16_DENSE, BF16),
        (3, 72, 35, Q8, F16),
    ],
)
def test_value_projection(n: int, inputs: int, outputs: int, weights: WeightFormat, cache_dtype: Any) -> None:
    """Rows of the cache that are not the tokens' stay."""
    rng, slot, position = np.random.default_rng(3), 1, ints(9, 9, 3, 2, 9, 9).reshape(3, 2)
    u, (memory, weight) = floats(rng, n, inputs).astype(weights.arithmetic), matrix(rng, outputs, inputs, weights)
    bias, values = floats(rng, outputs), floats(rng, 3, 2, n + 3, outputs).astype(cache_dtype)
    expected = values.copy()
    kernel = linear.value_projection(inputs, outputs, 3, n + 3, weights, cache_dtype.name, BOTH)
    launch_cuda(kernel, u, memory, bias, ints(slot), position, values)
    written = slot, 1, slice(2, 2 + n)
    assert_close(values[written], oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))
    expected[written] = values[written]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("n", "dim", "z_dim", "value_dim", "weights"),
    [
        (67, 50, 19, 66, F32_DENSE),
        (5, 33, 70, 65, F16_DENSE),
        (259, 136, 20, 130, BF16_DENSE),
        (3, 72, 131, 7, Q4),
    ],
)
def test_projections(n: int, dim: int, z_dim: int, value_dim: int, weights: WeightFormat) -> None:
    rng = np.random.default_rng(4)
    mx, x = floats(rng, n, dim).astype(weights.arithmetic), floats(rng, n, dim)
    memories, (wz, wr, wh) = zip(
        *(matrix(rng, outputs, dim, weights) for outputs in (z_dim, value_dim, dim)), strict=True
    )
    biases = bz, br, bh = [floats(rng, outputs) for outputs in (z_dim, value_dim, dim)]
    z, r, h = empty(n, z_dim), empty(n, value_dim, mx.dtype), empty(n, dim)
    kernel = linear.projections(dim, z_dim, value_dim, weights, BOTH)
    launch_cuda(kernel, mx, *(array for layer in zip(memories, biases, strict=True) for array in layer), x, z, r, h)
    inputs = mx.astype(float)
    assert_close(z, oracle(inputs, wz, bz, epilogue="bias"))
    assert_close(r, oracle(inputs, wr, br, epilogue="bias", activation="silu"))
    assert_close(h, oracle(inputs, wh, bh, epilogue="bias") + x)
