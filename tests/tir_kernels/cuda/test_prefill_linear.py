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

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
BOTH, SM_90, SM_86 = CUDA((80, 90)), CUDA((90,)), CUDA((86,))
# Rows, inputs, outputs, dtype of activations and weights, machine.
PLAIN, PLAIN_16_BIT = (67, 50, 66, F32, BOTH), (5, 33, 131, F16, SM_90)
WIDE, DEEP, SMALL = (259, 200, 130, BF16, BOTH), (3, 328, 137, F16, SM_90), (129, 64, 10, BF16, SM_86)
cases = pytest.mark.parametrize(
    ("n", "inputs", "outputs", "dtype", "machine"), [PLAIN, PLAIN_16_BIT, WIDE, DEEP, SMALL]
)


def matrix(rng: np.random.Generator, rows: int, inputs: int, dtype: Any) -> np.ndarray:
    return (floats(rng, rows, inputs) / np.sqrt(inputs)).astype(dtype)


def empty(rows: int, columns: int, dtype: Any = F32) -> np.ndarray:
    return np.full((rows, columns), np.nan, dtype)


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """Sums are fp32; what is stored in 16 bits has been rounded once."""
    eps = 0 if result.dtype == F32 else float(ml_dtypes.finfo(result.dtype).eps)
    np.testing.assert_allclose(result.astype(float), expected, rtol=eps, atol=1e-5)


def test_linear() -> None:
    rng = np.random.default_rng(0)
    x, weight, y = floats(rng, 70, 72).astype(BF16), matrix(rng, 33, 72, BF16), empty(70, 33)
    launch_cuda(linear.linear(72, 33, "bfloat16", BOTH), x, weight, y)
    assert_close(y, oracle(x.astype(float), weight))


@cases
def test_linear_residual(n: int, inputs: int, outputs: int, dtype: Any, machine: CUDA) -> None:
    rng, scaled = np.random.default_rng(1), machine is BOTH
    x, weight = floats(rng, n, inputs).astype(dtype), matrix(rng, outputs, inputs, dtype)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, n, outputs)]
    y = empty(n, outputs)
    launch_cuda(linear.linear_residual(inputs, outputs, dtype.name, scaled, machine), x, weight, *operands, y)
    assert_close(y, oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual"))


@cases
def test_gate(n: int, inputs: int, outputs: int, dtype: Any, machine: CUDA) -> None:
    rng, swiglu = np.random.default_rng(2), dtype != BF16 or machine is BOTH
    u = floats(rng, n, inputs).astype(dtype)
    fc1, fc3 = matrix(rng, outputs, inputs, dtype), matrix(rng, outputs, inputs, dtype)
    y = empty(n, outputs, dtype)
    launch_cuda(linear.gate(inputs, outputs, swiglu, dtype.name, machine), u, fc1, *[fc3] * swiglu, y)
    expected = oracle(u.astype(float), fc1, activation="silu")
    assert_close(y, oracle(u.astype(float), fc3, expected, epilogue="gate") if swiglu else expected)


@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "dtype", "cache_dtype"),
    [(67, 50, 66, F32, F32), (5, 33, 131, F16, F32), (259, 200, 130, BF16, BF16), (3, 72, 35, F16, F16)],
)
def test_value_projection(n: int, inputs: int, outputs: int, dtype: Any, cache_dtype: Any) -> None:
    """Rows of the cache that are not the tokens' stay."""
    rng, slot, position = np.random.default_rng(3), 1, ints(9, 9, 3, 2, 9, 9).reshape(3, 2)
    u, weight = floats(rng, n, inputs).astype(dtype), matrix(rng, outputs, inputs, dtype)
    bias, values = floats(rng, outputs), floats(rng, 3, 2, n + 3, outputs).astype(cache_dtype)
    expected = values.copy()
    kernel = linear.value_projection(inputs, outputs, 3, n + 3, dtype.name, cache_dtype.name, BOTH)
    launch_cuda(kernel, u, weight, bias, ints(slot), position, values)
    written = slot, 1, slice(2, 2 + n)
    assert_close(values[written], oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))
    expected[written] = values[written]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("n", "dim", "z_dim", "value_dim", "dtype"),
    [(67, 50, 19, 66, F32), (5, 33, 70, 65, F16), (259, 136, 20, 130, BF16), (3, 72, 131, 7, F16)],
)
def test_projections(n: int, dim: int, z_dim: int, value_dim: int, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    mx, x = floats(rng, n, dim).astype(dtype), floats(rng, n, dim)
    (wz, bz), (wr, br), (wh, bh) = layers = [
        (matrix(rng, outputs, dim, dtype), floats(rng, outputs)) for outputs in (z_dim, value_dim, dim)
    ]
    z, r, h = empty(n, z_dim), empty(n, value_dim, dtype), empty(n, dim)
    kernel = linear.projections(dim, z_dim, value_dim, dtype.name, BOTH)
    launch_cuda(kernel, mx, *(array for layer in layers for array in layer), x, z, r, h)
    inputs = mx.astype(float)
    assert_close(z, oracle(inputs, wz, bz, epilogue="bias"))
    assert_close(r, oracle(inputs, wr, br, epilogue="bias", activation="silu"))
    assert_close(h, oracle(inputs, wh, bh, epilogue="bias") + x)
