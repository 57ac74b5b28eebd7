"""Matrix products against the oracle, at odd sizes, for few and many rows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.launch import floats, launch, machines

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cpu import dense_product, linear
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.oracles import linear as linear_oracle

EPILOGUES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "bias": ("vector",),
    "gate": ("matrix",),
    "residual": ("matrix",),
    "residual2": ("matrix", "matrix"),
    "scale_residual": ("vector", "matrix"),
}


def check(n: int, k: int, out: int, dtype: Any, machine: CPU, epilogue: str, activation: str | None) -> None:
    rng, weights = np.random.default_rng(n), Dense(np.dtype(dtype).name)
    x, weight = floats(rng, n, k), (floats(rng, out, k) / np.sqrt(k)).astype(dtype)
    operands = [floats(rng, out) if kind == "vector" else floats(rng, n, out) for kind in EPILOGUES[epilogue]]
    packed = np.full((divide(n, machine.tile_rows), k, machine.tile_rows), np.nan, np.float32)
    packed = launch(linear.pack_rows(k, weights, machine), x, packed)[1]
    kernel = linear.linear(k, out, weights, machine, epilogue, activation)
    y = launch(kernel, x, packed, weight, *operands, np.full((n, out), np.nan, np.float32))[-1]
    expected = linear_oracle.oracle(x.astype(float), weight, *operands, epilogue=epilogue, activation=activation)
    np.testing.assert_allclose(y, expected, atol=2e-5)


@machines
@pytest.mark.parametrize("n", [1, 5, dense_product.FEW_ROWS, dense_product.FEW_ROWS + 1, 25])
@pytest.mark.parametrize(("k", "out"), [(30, 33), (48, 64), (7, 3)])
def test_sizes(machine: CPU, n: int, k: int, out: int) -> None:
    check(n, k, out, np.float32, machine, "bias", "silu")


@machines
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n", [1, 13])
def test_sixteen_bit_weights(machine: CPU, dtype: Any, n: int) -> None:
    check(n, 32, 35, dtype, machine, "plain", None)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("n", [3, 14])
def test_epilogues(epilogue: str, activation: str | None, n: int) -> None:
    check(n, 24, 37, np.float32, CPU(), epilogue, activation)
