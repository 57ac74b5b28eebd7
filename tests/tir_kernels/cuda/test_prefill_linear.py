"""Matrix products of prefill on a GPU against the oracle, at sizes that fill no tile.

Tensor cores are those of the GPUs before sm_90: its `wgmma` is not executed here. What surrounds it is, with the
stages of its pipeline.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import launch_cuda
from support.weights import format_of, weights_in_memory
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.tir_kernels.cuda.gemm.launches import MANY_ROWS
from gecko_mlc.tir_kernels.cuda.prefill import linear
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import CHUNKS, THREADS, dequantize_rows
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.oracles.linear import oracle

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
BOTH, SM_90, SM_86 = CUDA((80, 90)), CUDA((90,)), CUDA((86,))
# Rows, inputs, outputs, scheme of the weights, machine.
PLAIN, PLAIN_16_BIT = (67, 50, 66, "q0f32", BOTH), (5, 33, 131, "q0f16", SM_90)
WIDE, DEEP, SMALL = (259, 200, 130, "q0bf16", BOTH), (3, 328, 137, "q0f16", SM_90), (129, 64, 10, "q0bf16", SM_86)
PLAIN_QUANTIZED, PLAIN_ODD = (67, 50, 66, "q4f32_1", BOTH), (5, 47, 131, "q3f16_1", SM_90)
QUANTIZED = [
    (259, 456, 130, "q4f16_1", BOTH),
    (3, 136, 259, "q4f16_1", SM_90),
    (3, 688, 137, "q3f16_1", SM_90),
    (129, 40, 10, "q3f16_1", SM_86),
    (3, 136, 137, "q8f16_1", SM_90),
    (MANY_ROWS + 1, 72, 131, "q4f16_1", SM_90),
    (MANY_ROWS, 40, 10, "q3f16_1", SM_86),
]
cases = pytest.mark.parametrize(
    ("n", "inputs", "outputs", "scheme", "machine"),
    [PLAIN, PLAIN_16_BIT, WIDE, DEEP, SMALL, PLAIN_QUANTIZED, PLAIN_ODD, *QUANTIZED],
)

quantized = pytest.mark.parametrize("scheme", ["q4f16_1", "q8f16_1", "q3f16_1"])


def matrix(rng: np.random.Generator, outputs: int, inputs: int, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix, as it lies in memory and as it is multiplied: on tensor cores, in 16 bits."""
    memory, weight = weights_in_memory(rng, outputs, inputs, scheme)
    return memory, weight if inputs % 8 else weight.astype(activations(scheme))


def activations(scheme: str) -> np.dtype[Any]:
    return NUMPY_DTYPES[format_of(scheme).arithmetic]


def empty(rows: int, columns: int, dtype: Any = F32) -> np.ndarray:
    return np.full((rows, columns), np.nan, dtype)


def launch_in(kernel: Any, *arguments: np.ndarray) -> np.ndarray | None:
    """Launch a kernel; what it had for itself, if anything."""
    scratch = [empty(*map(int, p.shape), NUMPY_DTYPES[str(p.dtype)]) for p in kernel.params[len(arguments) :]]
    launch_cuda(kernel, *arguments, *scratch)
    return scratch[0] if scratch else None


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """Sums are fp32; what is stored in 16 bits has been rounded once."""
    eps = 0 if result.dtype == F32 else float(ml_dtypes.finfo(result.dtype).eps)
    np.testing.assert_allclose(result.astype(float), expected, rtol=eps, atol=1e-5)


def test_linear() -> None:
    rng = np.random.default_rng(0)
    x, (memory, weight), y = floats(rng, 70, 72).astype(BF16), matrix(rng, 33, 72, "q0bf16"), empty(70, 33)
    launch_cuda(linear.linear(72, 33, format_of("q0bf16"), BOTH), x, memory, y)
    assert_close(y, oracle(x.astype(float), weight))


@quantized
def test_many_rows_are_multiplied_by_the_same_weights(scheme: str) -> None:
    """To the bit, by whatever way; rows of the identity show them."""
    rng, (inputs, outputs) = np.random.default_rng(0), (136, 35)
    memory, weight = matrix(rng, outputs, inputs, scheme)
    kernel = linear.linear_residual(inputs, outputs, format_of(scheme), False, SM_90)
    for n in (MANY_ROWS - 1, MANY_ROWS):
        y = empty(n, outputs)
        dequantized = launch_in(kernel, np.eye(n, inputs, dtype=F16), memory, np.zeros_like(y), y)
        np.testing.assert_array_equal(y[:inputs].T, weight)
        np.testing.assert_array_equal(dequantized, weight if n == MANY_ROWS else empty(outputs, inputs, F16))


@quantized
def test_dequantize_rows(scheme: str) -> None:
    """Longer ones than a block's."""
    rows, features, layout = 3, 8 * CHUNKS * THREADS + 40, format_of(scheme)
    assert isinstance(layout, GroupLayout)
    launch = dequantize_rows(features, layout)

    @T.prim_func(s_tir=True, private=True)
    def kernel(memory: T.Buffer(layout.shape(rows, features), "uint32"), y: T.Buffer((rows, features), "float16")):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        launch(lambda o, i: T.address_of(memory[o, i]), rows, y)

    memory, weight = matrix(np.random.default_rng(0), rows, features, scheme)
    y = empty(rows, features, F16)
    launch_cuda(kernel, memory, y)
    np.testing.assert_array_equal(y, weight)


@cases
def test_linear_residual(n: int, inputs: int, outputs: int, scheme: str, machine: CUDA) -> None:
    rng, scaled = np.random.default_rng(1), machine is BOTH
    x, (memory, weight) = floats(rng, n, inputs).astype(activations(scheme)), matrix(rng, outputs, inputs, scheme)
    operands = [floats(rng, outputs)] * scaled + [floats(rng, n, outputs)]
    y = empty(n, outputs)
    launch_in(linear.linear_residual(inputs, outputs, format_of(scheme), scaled, machine), x, memory, *operands, y)
    assert_close(y, oracle(x.astype(float), weight, *operands, epilogue="scale_residual" if scaled else "residual"))


@cases
def test_gate(n: int, inputs: int, outputs: int, scheme: str, machine: CUDA) -> None:
    rng, swiglu = np.random.default_rng(2), machine is not SM_86
    u = floats(rng, n, inputs).astype(activations(scheme))
    (memory1, fc1), (memory3, fc3) = (matrix(rng, outputs, inputs, scheme) for _ in range(2))
    y = empty(n, outputs, u.dtype)
    launch_in(linear.gate(inputs, outputs, swiglu, format_of(scheme), machine), u, memory1, *[memory3] * swiglu, y)
    expected = oracle(u.astype(float), fc1, activation="silu")
    assert_close(y, oracle(u.astype(float), fc3, expected, epilogue="gate") if swiglu else expected)


@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "scheme", "cache_dtype"),
    [
        (67, 50, 66, "q0f32", F32),
        (5, 33, 131, "q0f16", F32),
        (259, 200, 130, "q0bf16", BF16),
        (3, 72, 35, "q8f16_1", F16),
        (MANY_ROWS, 72, 35, "q8f16_1", F16),
    ],
)
def test_value_projection(n: int, inputs: int, outputs: int, scheme: str, cache_dtype: Any) -> None:
    """Rows of the cache that are not the tokens' stay."""
    rng, slot, position = np.random.default_rng(3), 1, ints(9, 9, 3, 2, 9, 9).reshape(3, 2)
    u, (memory, weight) = floats(rng, n, inputs).astype(activations(scheme)), matrix(rng, outputs, inputs, scheme)
    bias, values = floats(rng, outputs), floats(rng, 3, 2, n + 3, outputs).astype(cache_dtype)
    expected = values.copy()
    kernel = linear.value_projection(inputs, outputs, 3, n + 3, format_of(scheme), cache_dtype.name, BOTH)
    launch_in(kernel, u, memory, bias, ints(slot), position, values)
    written = slot, 1, slice(2, 2 + n)
    assert_close(values[written], oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))
    expected[written] = values[written]
    np.testing.assert_array_equal(values, expected)


def test_values_that_will_be_codes() -> None:
    rng, (n, inputs, outputs) = np.random.default_rng(3), (5, 72, 35)
    u, (memory, weight) = floats(rng, n, inputs).astype(F16), matrix(rng, outputs, inputs, "q0f16")
    bias, v = floats(rng, outputs), empty(n, outputs, F16)
    kernel = linear.value_projection(inputs, outputs, 3, 9, format_of("q0f16"), "int8", BOTH)
    launch_in(kernel, u, memory, bias, v)
    assert_close(v, oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))


@pytest.mark.parametrize(
    ("n", "dim", "z_dim", "value_dim", "scheme"),
    [
        (67, 50, 19, 66, "q0f32"),
        (5, 33, 70, 65, "q0f16"),
        (259, 136, 20, 130, "q0bf16"),
        (3, 72, 131, 7, "q4f16_1"),
        (MANY_ROWS, 72, 131, 7, "q4f16_1"),
    ],
)
def test_projections(n: int, dim: int, z_dim: int, value_dim: int, scheme: str) -> None:
    rng = np.random.default_rng(4)
    mx, x = floats(rng, n, dim).astype(activations(scheme)), floats(rng, n, dim)
    memories, (wz, wr, wh) = zip(
        *(matrix(rng, outputs, dim, scheme) for outputs in (z_dim, value_dim, dim)), strict=True
    )
    biases = bz, br, bh = [floats(rng, outputs) for outputs in (z_dim, value_dim, dim)]
    z, r, h = empty(n, z_dim), empty(n, value_dim, mx.dtype), empty(n, dim)
    kernel = linear.projections(dim, z_dim, value_dim, format_of(scheme), BOTH)
    launch_in(kernel, mx, *(array for layer in zip(memories, biases, strict=True) for array in layer), x, z, r, h)
    inputs = mx.astype(float)
    assert_close(z, oracle(inputs, wz, bz, epilogue="bias"))
    assert_close(r, oracle(inputs, wr, br, epilogue="bias", activation="silu"))
    assert_close(h, oracle(inputs, wh, bh, epilogue="bias") + x)
