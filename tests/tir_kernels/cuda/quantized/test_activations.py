"""The memory of quantized rows: what is packed is unpacked, to two bytes."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.quantized.activations import LARGEST, quantized_row


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f32_1", "q8f16_1"])
def test_unpack_is_the_inverse_of_pack(scheme: str) -> None:
    row = quantized_row(256, 256, format_of(scheme), rows=1)
    assert row is not None
    values = floats(np.random.default_rng(0), 3, 256)
    values[1, :64] = 0
    packed = row.pack(values)
    assert packed.shape == (3, row.words)
    assert row.consistent(packed)
    # Half a step, and a little for the factor in fp32.
    assert (np.abs(row.unpack(packed) - values) <= row.largest(values) / LARGEST * 0.502).all()


@pytest.mark.parametrize(
    ("scheme", "features", "block_features", "rows"),
    [("q0f16", 256, 256, 1), ("q4f16_1", 256, 256, 2), ("q4f16_1", 100, 100, 1), ("q4f16_1", 256, 16, 1)],
)
def test_rows_that_stay_fp32(scheme: str, features: int, block_features: int, rows: int) -> None:
    """Of dense weights, of several rows, and where vectors are not of one block or rows not of chunks."""
    assert quantized_row(features, block_features, format_of(scheme), rows) is None
