"""The projections of prefill on a GPU against the oracle, at sizes that fill no tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.gemm import BF16, BOTH, F16, F32, activations, assert_close, empty, launch_in, matrix
from support.launch import floats, ints
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemm.launches import DEQUANTIZE_FIRST_ROWS
from gecko_mlc.tir_kernels.cuda.prefill.projections import projections, value_projection
from gecko_mlc.tir_kernels.oracles.linear import oracle
from gecko_mlc.tir_kernels.shapes import Window


def window(value_dim: int, chunk_size: int, value_dtype: str, z_dim: int = 4) -> Window:
    """Of three slots."""
    return Window(z_dim, value_dim, 1, 1, chunk_size, 3, 1e-5, "float32", value_dtype)


@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "scheme", "cache_dtype"),
    [
        (67, 50, 66, "q0f32", F32),
        (5, 33, 131, "q0f16", F32),
        (259, 200, 130, "q0bf16", BF16),
        (3, 72, 35, "q8f16_1", F16),
        (DEQUANTIZE_FIRST_ROWS, 72, 35, "q8f16_1", F16),
    ],
)
def test_value_projection(n: int, inputs: int, outputs: int, scheme: str, cache_dtype: Any) -> None:
    """Rows of the cache that are not the tokens' stay."""
    rng, slot, position = np.random.default_rng(3), 1, ints(9, 9, 3, 2, 9, 9).reshape(3, 2)
    u, (memory, weight) = floats(rng, n, inputs).astype(activations(scheme)), matrix(rng, outputs, inputs, scheme)
    bias, values = floats(rng, outputs), floats(rng, 3, 2, n + 3, outputs).astype(cache_dtype)
    expected = values.copy()
    kernel = value_projection(inputs, window(outputs, n + 3, cache_dtype.name), format_of(scheme), BOTH)
    launch_in(kernel, u, memory, bias, ints(slot), position, values)
    written = slot, 1, slice(2, 2 + n)
    assert_close(values[written], oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))
    expected[written] = values[written]
    np.testing.assert_array_equal(values, expected)


def test_values_that_will_be_codes() -> None:
    rng, (n, inputs, outputs) = np.random.default_rng(3), (5, 72, 35)
    u, (memory, weight) = floats(rng, n, inputs).astype(F16), matrix(rng, outputs, inputs, "q0f16")
    bias, v = floats(rng, outputs), empty(n, outputs, F16)
    kernel = value_projection(inputs, window(outputs, 9, "int8"), format_of("q0f16"), BOTH)
    launch_in(kernel, u, memory, bias, v)
    assert_close(v, oracle(u.astype(float), weight, bias, epilogue="bias", activation="silu"))


@pytest.mark.parametrize(
    ("n", "dim", "z_dim", "value_dim", "scheme"),
    [
        (67, 50, 19, 66, "q0f32"),
        (5, 33, 70, 65, "q0f16"),
        (259, 136, 20, 130, "q0bf16"),
        (3, 72, 131, 7, "q4f16_1"),
        (DEQUANTIZE_FIRST_ROWS, 72, 131, 7, "q4f16_1"),
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
    kernel = projections(dim, window(value_dim, 9, "float32", z_dim), format_of(scheme), BOTH)
    launch_in(kernel, mx, *(array for layer in zip(memories, biases, strict=True) for array in layer), x, z, r, h)
    inputs = mx.astype(float)
    assert_close(z, oracle(inputs, wz, bz, epilogue="bias"))
    assert_close(r, oracle(inputs, wr, br, epilogue="bias", activation="silu"))
    assert_close(h, oracle(inputs, wh, bh, epilogue="bias") + x)
