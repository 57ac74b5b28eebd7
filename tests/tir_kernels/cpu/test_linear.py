"""What follows a product: activation and operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.launch import floats, launch

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cpu import linear
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.linear import oracle

# Of each epilogue of the oracle.
OPERANDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "bias": ("bias",),
    "gate": ("gate",),
    "residual": ("addend",),
    "residual2": ("addend", "second"),
    "scale_residual": ("scale", "addend"),
}


@pytest.mark.parametrize("epilogue", OPERANDS)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("n", [3, 14])
def test_epilogues(epilogue: str, activation: str | None, n: int) -> None:
    rng, k, out, weights, hardware = np.random.default_rng(n), 24, 37, Dense("float32"), CPU()
    x, weight = floats(rng, n, k), floats(rng, out, k) / np.float32(np.sqrt(k))
    names = OPERANDS[epilogue]
    operands = [floats(rng, out) if name in ("bias", "scale") else floats(rng, n, out) for name in names]
    packed = np.full(linear.packed_shape(n, k, weights, hardware), np.nan, np.float32)
    packed = launch(linear.pack_rows(k, weights, hardware), x, packed)[1]
    kernel: Any = linear.linear(k, out, weights, hardware, activation, names)
    y = launch(kernel, x, packed, weight, *operands, np.full((n, out), np.nan, np.float32))[-1]
    expected = oracle(x.astype(float), weight, *operands, epilogue=epilogue, activation=activation)
    np.testing.assert_allclose(y, expected, atol=2e-5)
