"""Products with plain weights against the oracle, at odd sizes, for few and many rows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.launch import cpus, floats, launch

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cpu import linear
from gecko_mlc.tir_kernels.cpu.dense_product import FEW_ROWS
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.oracles.linear import oracle


def check(n: int, k: int, out: int, dtype: Any, hardware: CPU) -> None:
    rng, weights = np.random.default_rng(n), Dense(np.dtype(dtype).name)
    x, weight = floats(rng, n, k), (floats(rng, out, k) / np.sqrt(k)).astype(dtype)
    packed = np.full((divide(n, hardware.tile_rows), k, hardware.tile_rows), np.nan, np.float32)
    packed = launch(linear.pack_rows(k, weights, hardware), x, packed)[1]
    kernel = linear.linear(k, out, weights, hardware)
    y = launch(kernel, x, packed, weight, np.full((n, out), np.nan, np.float32))[-1]
    np.testing.assert_allclose(y, oracle(x.astype(float), weight), atol=2e-5)


@cpus
@pytest.mark.parametrize("n", [1, 5, FEW_ROWS, FEW_ROWS + 1, 25])
@pytest.mark.parametrize(("k", "out"), [(30, 33), (48, 64), (7, 3)])
def test_sizes(hardware: CPU, n: int, k: int, out: int) -> None:
    check(n, k, out, np.float32, hardware)


@cpus
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n", [1, 13])
def test_sixteen_bit_weights(hardware: CPU, dtype: Any, n: int) -> None:
    check(n, 32, 35, dtype, hardware)
