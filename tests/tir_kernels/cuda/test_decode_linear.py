"""Matrix products of decode against the oracles, at odd sizes, for few and many rows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gecko_mlc.tir_kernels.cuda import decode_linear
from gecko_mlc.tir_kernels.group_norm import layer_norm_oracle, rms_norm_oracle
from gecko_mlc.tir_kernels.linear import oracle
from launch import floats
from launch_cuda import launch_cuda

EPS = 1e-5
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
SIZES = [(48, 97), (80, 131), (50, 33), (7, 5), (520, 40)]
# The largest batch of a library, the batch of a launch, the weights' dtype, inputs and outputs. Each weight of a
# tensor core form is read in slices, which 520 inputs do not fill.
CASES = [
    (rows, b, dtype, *SIZES[(i + j) % len(SIZES)])
    for i, (rows, b) in enumerate([(1, 1), (3, 2), (8, 8)])
    for j, dtype in enumerate(DTYPES)
] + [(17, 9, np.float32, 50, 33), (17, 17, np.float16, 520, 40), (32, 31, ml_dtypes.bfloat16, 80, 35)]
NAMES = ("rows", "b", "dtype", "inputs", "outputs")
cases = pytest.mark.parametrize(NAMES, CASES)


def weight_of(rng: np.random.Generator, outputs: int, inputs: int, dtype: Any) -> np.ndarray:
    return (floats(rng, outputs, inputs) / np.sqrt(inputs)).astype(dtype)


def empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def assert_close(result: np.ndarray, expected: np.ndarray, dtype: Any, rows: int, atol: float = 0) -> None:
    """Only the tensor cores, of several rows, round the activations."""
    rounding = float(ml_dtypes.finfo(dtype).eps) if rows > 1 and dtype is not np.float32 else 0
    np.testing.assert_allclose(
        result.astype(np.float32), expected, rtol=1e-6 + rounding, atol=atol + 4 * rounding + 2e-5
    )


@cases
def test_linear_residual(rows: int, b: int, dtype: Any, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    scaled = rows != 3
    x, weight = floats(rng, b, inputs), weight_of(rng, outputs, inputs, dtype)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, b, outputs)]
    kernel = decode_linear.linear_residual(inputs, outputs, np.dtype(dtype).name, scaled, rows)
    result = empty(b, outputs)
    launch_cuda(kernel, x, weight, *operands, result)
    expected = oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual")
    assert_close(result, expected, dtype, rows)


@cases
def test_gate(rows: int, b: int, dtype: Any, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    groups = 2 if rows == 17 and inputs % 2 == 0 else 1
    affine, swiglu = dtype is not np.float16, dtype is np.float32 or rows > 8
    x = 3 + floats(rng, b, inputs)
    fc1, fc3 = weight_of(rng, outputs, inputs, dtype), weight_of(rng, outputs, inputs, dtype)
    weight, bias = 0.1 * floats(rng, inputs), floats(rng, inputs)
    kernel = decode_linear.gate(inputs, outputs, groups, EPS, affine, swiglu, np.dtype(dtype).name, rows)
    result = empty(b, outputs)
    launch_cuda(kernel, x, *[weight, bias] * affine, fc1, *[fc3] * swiglu, result)
    u = layer_norm_oracle(x.astype(float), weight * affine, bias * affine, groups, EPS)
    expected = oracle(u, fc1, activation="silu")
    if swiglu:
        expected = oracle(u, fc3, expected, epilogue="gate")
    assert_close(result, expected, dtype, rows)


# Its kernels are the longest: each dtype and each form once.
@pytest.mark.parametrize(NAMES, CASES[:9:4] + CASES[9:])
def test_projections(rows: int, b: int, dtype: Any, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    dim, value_dim, z_dim, slots, chunk = inputs, outputs, 19, 40, 6
    groups, affine = 2 if rows == 8 and dim % 2 == 0 else 1, rows != 3
    cache_dtype = np.float32 if dtype is np.float16 else dtype
    u, c, x = floats(rng, b, dim), 3 * floats(rng, b, dim), floats(rng, b, dim)
    norm_weight = 0.1 * floats(rng, dim)
    layers = [
        array
        for extent in (value_dim, z_dim, value_dim, dim)
        for array in (weight_of(rng, extent, dim, dtype), floats(rng, extent))
    ]
    slot_ids = rng.permutation(slots)[:b].astype(np.int32)
    position = np.stack([rng.integers(0, 5, slots), rng.integers(0, chunk, slots)], axis=1).astype(np.int32)
    values = floats(rng, slots, 2, chunk, value_dim).astype(cache_dtype)
    dtypes = np.dtype(dtype).name, np.dtype(cache_dtype).name
    kernel = decode_linear.projections(dim, z_dim, value_dim, groups, EPS, affine, slots, chunk, *dtypes, rows)
    z, r, h, others = empty(b, z_dim), empty(b, value_dim), empty(b, dim), values.copy()
    arguments = [u, c, *[norm_weight] * affine, *layers, x, slot_ids, position, values]
    launch_cuda(kernel, *arguments, z, r, h)

    mx = rms_norm_oracle(c.astype(float), norm_weight * affine, groups, EPS)
    wv, wv_bias, wz, wz_bias, wr, wr_bias, wh1, wh1_bias = layers
    v = oracle(u.astype(float), wv, wv_bias, epilogue="bias", activation="silu")
    assert_close(z, oracle(mx, wz, wz_bias, epilogue="bias"), dtype, rows)
    assert_close(r, oracle(mx, wr, wr_bias, epilogue="bias", activation="silu"), dtype, rows)
    assert_close(h, oracle(mx, wh1, wh1_bias, epilogue="bias") + x, dtype, rows)
    places = slot_ids, position[slot_ids, 0] % 2, position[slot_ids, 1]
    eps = float(ml_dtypes.finfo(cache_dtype).eps)
    assert_close(values[places] / (1 + abs(v)), v / (1 + abs(v)), dtype, rows, eps)
    values[places] = others[places]
    np.testing.assert_array_equal(values, others)


@pytest.mark.parametrize(("rows", "b", "dtype"), [(1, 1, np.float32), (8, 5, np.float16), (12, 12, ml_dtypes.bfloat16)])
def test_head(rows: int, b: int, dtype: Any) -> None:
    rng = np.random.default_rng(b)
    slots = 20
    x, weight, logits = floats(rng, b, 64), weight_of(rng, 97, 64, dtype), floats(rng, slots, 97)
    slot_ids = rng.permutation(slots)[:b].astype(np.int32)
    expected = logits.copy()
    launch_cuda(decode_linear.head(64, 97, slots, np.dtype(dtype).name, rows), x, weight, slot_ids, logits)
    expected[slot_ids] = oracle(x.astype(float), weight)
    assert_close(logits, expected, dtype, rows)
