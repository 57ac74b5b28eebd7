"""Products with quantized weights against the oracle, for every scheme and instruction."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, launch

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.runtime.devices.host import cpu_features
from gecko_mlc.tir_kernels.cpu import linear
from gecko_mlc.tir_kernels.hardware import CPU, ByteDot
from gecko_mlc.tir_kernels.oracles.linear import oracle, rounded

schemes = pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])


# With the features that a CPU has to have.
_CPUS = {
    CPU(16, 32, ByteDot.VNNI): {"avx512vnni"},
    CPU(8, 16, ByteDot.VNNI): {"avx512vnni", "avx512vl"},
    CPU(16, 32, ByteDot.PAIRS): {"avx512bw"},
    CPU(8, 16, ByteDot.PAIRS): {"avx2"},
    CPU(4, 32): set(),
}
cpus = pytest.mark.parametrize(
    "hardware",
    [hardware for hardware, features in _CPUS.items() if features <= (cpu_features() or features)],
    ids=lambda hardware: f"{hardware.byte_dot.value}-{hardware.lanes}",
)


def layout_of(scheme: str, hardware: CPU) -> GroupLayout:
    group = QUANTIZATIONS[scheme].group
    assert group is not None
    return GroupLayout(quantization=group, lanes=hardware.lanes, code_bits=4 if group.bits == 3 else group.bits)


def multiply(
    x: np.ndarray, weight: np.ndarray, layout: GroupLayout, hardware: CPU, **operands: np.ndarray
) -> np.ndarray:
    """The kernels' x Wᵀ of the quantized weight [out, in], with operands of `linear`."""
    (n, k), out = x.shape, len(weight)
    packed = np.full(linear.packed_shape(n, k, layout, hardware), -1, linear.packed_dtype(layout))
    packed = launch(linear.pack_rows(k, layout, hardware), x, packed)[1]
    kernel = linear.linear(k, out, layout, hardware, operands=tuple(operands))
    stored = layout.pack(*layout.quantization.quantize(weight), k)
    return launch(kernel, x, packed, stored, *operands.values(), np.full((n, out), np.nan, np.float32))[-1]


def dequantized(weight: np.ndarray, layout: GroupLayout) -> np.ndarray:
    quantized = layout.quantization.quantize(weight)
    return layout.quantization.dequantize(*quantized, weight.shape[1]).astype(float)


@cpus
@schemes
def test_every_instruction(hardware: CPU, scheme: str) -> None:
    """Few rows and many, ragged in every direction; a row's outputs do not depend, by a bit, on the rows beside it."""
    rng, layout, (n, k, out) = np.random.default_rng(0), layout_of(scheme, hardware), (31, 157, 35)
    x, weight, bias = floats(rng, n, k), floats(rng, out, k) / np.float32(np.sqrt(k)), floats(rng, out)
    # The largest sums that there are, zeros, and what is too small to scale.
    x[0], x[1], x[2, :80], x[3] = 5, -5, 0, 1e-38
    weight[0], weight[1] = 1, -1
    y = multiply(x, weight, layout, hardware, bias=bias)
    expected = oracle(
        rounded(x, layout.quantization.group_size).astype(float),
        dequantized(weight, layout),
        bias,
        epilogue="bias",
    )
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
    for rows in (slice(0, 1), slice(12, 17), slice(5, 31)):
        np.testing.assert_array_equal(multiply(x[rows], weight, layout, hardware, bias=bias), y[rows])


@schemes
def test_whole_blocks(scheme: str) -> None:
    """No tail anywhere, and operands that are matrices."""
    hardware = CPU(8, 16)
    rng, layout, (n, k, out) = np.random.default_rng(1), layout_of(scheme, hardware), (8, 160, 32)
    x, weight = floats(rng, n, k), floats(rng, out, k) / np.float32(np.sqrt(k))
    scale, addend = floats(rng, out), floats(rng, n, out)
    y = multiply(x, weight, layout, hardware, scale=scale, addend=addend)
    x = rounded(x, layout.quantization.group_size).astype(float)
    expected = oracle(x, dequantized(weight, layout), scale, addend, epilogue="scale_residual")
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("group_size", [32, 40])
def test_rounding_is_to_half_a_step(group_size: int) -> None:
    """Of each group's largest magnitude / 127."""
    x = floats(np.random.default_rng(2), 9, 157)
    step = np.stack([np.abs(x[:, i : i + group_size]).max(1) / 127 for i in range(0, 157, group_size)], 1)
    error = np.abs(rounded(x, group_size) - x)
    assert (error <= 0.5001 * step.repeat(group_size, 1)[:, :157]).all()
