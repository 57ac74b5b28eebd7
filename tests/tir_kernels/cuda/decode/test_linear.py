"""Matrix products of decode against the oracles, at odd sizes, for few and many rows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.launch import floats
from support.launch_cuda import assert_rounded, launch_cuda
from support.weights import format_of, weights_in_memory

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cuda.decode import linear as decode_linear
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, quantized_row
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.oracles.group_norm import layer_norm_oracle, rms_norm_oracle
from gecko_mlc.tir_kernels.oracles.linear import oracle
from gecko_mlc.tir_kernels.shapes import GroupNorm

EPS = 1e-5
SCHEMES = ["q0f32", "q0f16", "q0bf16"]
SIZES = [(48, 97), (80, 131), (50, 33), (7, 5), (520, 40)]
# The largest batch of a library, the batch of a launch, the weights' scheme, inputs and outputs. Each weight of a
# tensor core form is read in slices, which 520 inputs do not fill.
DENSE = [
    (rows, b, scheme, *SIZES[(i + j) % len(SIZES)])
    for i, (rows, b) in enumerate([(1, 1), (3, 2), (8, 8)])
    for j, scheme in enumerate(SCHEMES)
] + [(17, 9, "q0f32", 50, 33), (17, 17, "q0f16", 520, 40), (32, 31, "q0bf16", 80, 35)]
# One row is read in parts, or by a warp alone.
QUANTIZED = [
    (1, 1, "q4f16_1", 520, 40),
    (1, 1, "q4f32_1", 50, 33),
    (1, 1, "q3f16_1", 1030, 35),
    (1, 1, "q8f16_1", 9000, 20),
    (3, 2, "q4f32_1", 7, 5),
    (3, 2, "q4f16_1", 1056, 33),
    (8, 8, "q8f16_1", 50, 33),
    (17, 17, "q3f16_1", 1290, 20),
]
CASES = DENSE + QUANTIZED
NAMES = ("rows", "b", "scheme", "inputs", "outputs")
cases = pytest.mark.parametrize(NAMES, CASES)


def matrices_of(scheme: str, rows: int) -> Matrices:
    return Matrices(format_of(scheme), rows, CUDA((80,)))


def empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def assert_close(result: np.ndarray, expected: np.ndarray, scheme: str, rows: int, atol: float = 0) -> None:
    """Products of several rows round the activations, and quantized weights; one row is two bytes then."""
    weights = format_of(scheme)
    dtype = weights.arithmetic
    if rows > 1 and dtype != "float32":
        rounding = float(ml_dtypes.finfo(dtype).eps)
    else:
        rounding = 0 if isinstance(weights, Dense) else 2.0**-14
    np.testing.assert_allclose(
        result.astype(np.float32), expected, rtol=1e-6 + rounding, atol=atol + 4 * rounding + 2e-5
    )


@cases
def test_linear_residual(rows: int, b: int, scheme: str, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    scaled = rows != 3
    x, (stored, weight) = floats(rng, b, inputs), weights_in_memory(rng, outputs, inputs, scheme)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, b, outputs)]
    kernel = decode_linear.linear_residual(inputs, outputs, matrices_of(scheme, rows), scaled)
    result = empty(b, outputs)
    launch_cuda(kernel, x, stored, *operands, result)
    expected = oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual")
    assert_close(result, expected, scheme, rows)


@cases
def test_gate(rows: int, b: int, scheme: str, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    groups = 2 if rows == 17 and inputs % 2 == 0 else 1
    affine, swiglu = scheme != "q0f16", scheme in ("q0f32", "q4f16_1", "q8f16_1") or rows > 8
    x = 3 + floats(rng, b, inputs)
    (stored1, fc1), (stored3, fc3) = (weights_in_memory(rng, outputs, inputs, scheme) for _ in range(2))
    weight, bias = 0.1 * floats(rng, inputs), floats(rng, inputs)
    kernel = decode_linear.gate(GroupNorm(inputs, groups, EPS, affine), outputs, swiglu, matrices_of(scheme, rows))
    result = empty(b, outputs)
    launch_cuda(kernel, x, *[weight, bias] * affine, stored1, *[stored3] * swiglu, result)
    u = layer_norm_oracle(x.astype(float), weight * affine, bias * affine, groups, EPS)
    expected = oracle(u, fc1, activation="silu")
    if swiglu:
        expected = oracle(u, fc3, expected, epilogue="gate")
    assert_close(result, expected, scheme, rows)


# Its kernels are the longest: each dtype and each form once.
@pytest.mark.parametrize(NAMES, DENSE[:9:4] + DENSE[9:] + QUANTIZED[:1])
def test_projections(rows: int, b: int, scheme: str, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(b)
    dim, value_dim, z_dim = inputs, outputs, 19
    groups, affine = 2 if rows == 8 and dim % 2 == 0 else 1, rows != 3
    u, c, x = floats(rng, b, dim), 3 * floats(rng, b, dim), floats(rng, b, dim)
    norm_weight = 0.1 * floats(rng, dim)
    extents = value_dim, z_dim, value_dim, dim
    matrices = [weights_in_memory(rng, extent, dim, scheme) for extent in extents]
    biases = [floats(rng, extent) for extent in extents]
    layers = [array for (stored, _), bias in zip(matrices, biases, strict=True) for array in (stored, bias)]
    kernel = decode_linear.projections(GroupNorm(dim, groups, EPS, affine), z_dim, value_dim, matrices_of(scheme, rows))
    v, z, r, h = results = [empty(b, extent) for extent in extents]
    launch_cuda(kernel, u, c, *[norm_weight] * affine, *layers, x, *results)

    mx = rms_norm_oracle(c.astype(float), norm_weight * affine, groups, EPS)
    (wv, wz, wr, wh1), (wv_bias, wz_bias, wr_bias, wh1_bias) = (weight for _, weight in matrices), biases
    assert_close(v, oracle(u.astype(float), wv, wv_bias, epilogue="bias", activation="silu"), scheme, rows)
    assert_close(z, oracle(mx, wz, wz_bias, epilogue="bias"), scheme, rows)
    assert_close(r, oracle(mx, wr, wr_bias, epilogue="bias", activation="silu"), scheme, rows)
    assert_close(h, oracle(mx, wh1, wh1_bias, epilogue="bias") + x, scheme, rows)


# Vectors of one unit of a warp and of several, with padding; more rows go this way with weights of fp32 alone.
quantized_cases = pytest.mark.parametrize(
    ("rows", "scheme", "inputs", "outputs"),
    [(1, "q4f16_1", 640, 128), (1, "q8f16_1", 1088, 64), (2, "q4f32_1", 128, 256)],
)


def layout_of(features: int, scheme: str, rows: int, squares: int = 0) -> QuantizedRow:
    row = quantized_row(features, features, format_of(scheme), rows, squares)
    assert row is not None
    return row


@quantized_cases
def test_quantized_rows_are_multiplied(rows: int, scheme: str, inputs: int, outputs: int) -> None:
    """Their squares are the norm's; the gain is in them."""
    rng, z_dim = np.random.default_rng(5), 19
    incoming = layout_of(inputs, scheme, rows, squares=3)
    values, squares = floats(rng, 2, rows, inputs), rng.uniform(1, 99, (rows, 3)).astype(np.float32)
    values[0, 0, 64:96] = 0
    u, c = map(incoming.pack, values)
    c.view(np.float32)[:, incoming.floats(3) : incoming.floats(3) + 3] = squares
    residual, extents = floats(rng, rows, inputs), (outputs, z_dim, outputs, inputs)
    matrices = [weights_in_memory(rng, extent, inputs, scheme) for extent in extents]
    biases = [floats(rng, extent) for extent in extents]
    layers = [array for (stored, _), bias in zip(matrices, biases, strict=True) for array in (stored, bias)]
    kernel = decode_linear.projections(
        GroupNorm(inputs, 1, EPS, True), z_dim, outputs, matrices_of(scheme, rows), incoming
    )
    v, z, r, h = results = [empty(rows, extent) for extent in extents]
    launch_cuda(kernel, u, c, *layers, residual, *results)

    u, mx = incoming.unpack(u), incoming.unpack(c) / np.sqrt(squares.sum(-1, keepdims=True) / inputs + EPS)
    (wv, wz, wr, wh1), (wv_bias, wz_bias, wr_bias, wh1_bias) = (weight for _, weight in matrices), biases
    assert_close(v, oracle(u, wv, wv_bias, epilogue="bias", activation="silu"), "q0f32", 1)
    assert_close(z, oracle(mx, wz, wz_bias, epilogue="bias"), "q0f32", 1)
    assert_close(r, oracle(mx, wr, wr_bias, epilogue="bias", activation="silu"), "q0f32", 1)
    assert_close(h, oracle(mx, wh1, wh1_bias, epilogue="bias") + residual, "q0f32", 1)


@quantized_cases
def test_a_gate_quantizes(rows: int, scheme: str, inputs: int, outputs: int) -> None:
    rng, outgoing = np.random.default_rng(6), layout_of(outputs, scheme, rows)
    x, (stored, fc1) = floats(rng, rows, inputs), weights_in_memory(rng, outputs, inputs, scheme)
    result = np.full((rows, outgoing.words), 0xFFFFFFFF, np.uint32)
    kernel = decode_linear.gate(GroupNorm(inputs, 1, EPS, False), outputs, False, matrices_of(scheme, rows), outgoing)
    launch_cuda(kernel, x, stored, result, outgoing=outgoing)
    u = layer_norm_oracle(x.astype(float), np.zeros(inputs), np.zeros(inputs), 1, EPS)
    assert_rounded(outgoing, result, oracle(u, fc1, activation="silu"))


@pytest.mark.parametrize(
    ("rows", "b", "scheme"), [(1, 1, "q0f32"), (8, 5, "q0f16"), (12, 12, "q0bf16"), (1, 1, "q8f16_1")]
)
def test_head(rows: int, b: int, scheme: str) -> None:
    rng = np.random.default_rng(b)
    slots = 20
    x, (stored, weight), logits = floats(rng, b, 64), weights_in_memory(rng, 97, 64, scheme), floats(rng, slots, 97)
    slot_ids = rng.permutation(slots)[:b].astype(np.int32)
    expected = logits.copy()
    launch_cuda(decode_linear.head(64, 97, slots, matrices_of(scheme, rows)), x, stored, slot_ids, logits)
    expected[slot_ids] = oracle(x.astype(float), weight)
    assert_close(logits, expected, scheme, rows)
