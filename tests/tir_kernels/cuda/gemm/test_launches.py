"""The launches of GEMMs with weights: dequantized in tiles, or first."""

from __future__ import annotations

import numpy as np
import pytest
from support.gemm import F16, SM_90, empty, launch_in, matrix
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemm.launches import DEQUANTIZE_FIRST_ROWS, gemm_launches
from gecko_mlc.tir_kernels.cuda.prefill.linear import linear_residual


@pytest.mark.parametrize("scheme", ["q4f16_1", "q8f16_1", "q3f16_1"])
def test_many_rows_are_multiplied_by_the_same_weights(scheme: str) -> None:
    """To the bit, by whatever way; rows of the identity show them."""
    rng, (inputs, outputs) = np.random.default_rng(0), (136, 35)
    memory, weight = matrix(rng, outputs, inputs, scheme)
    kernel = linear_residual(inputs, outputs, format_of(scheme), False, SM_90)
    for n in (DEQUANTIZE_FIRST_ROWS - 1, DEQUANTIZE_FIRST_ROWS):
        y = empty(n, outputs)
        dequantized = launch_in(kernel, np.eye(n, inputs, dtype=F16), memory, np.zeros_like(y), y)
        np.testing.assert_array_equal(y[:inputs].T, weight)
        np.testing.assert_array_equal(
            dequantized, weight if n == DEQUANTIZE_FIRST_ROWS else empty(outputs, inputs, F16)
        )


@pytest.mark.parametrize(
    ("scheme", "features", "dequantize"),
    [("q4f16_1", 64, True), ("q4f16_1", 50, False), ("q4f32_1", 64, False), ("q0f16", 64, False)],
)
def test_only_tiles_of_codes_on_tensor_cores_are_dequantized_first(
    scheme: str, features: int, dequantize: bool
) -> None:
    assert gemm_launches(features, (8,), format_of(scheme), SM_90).dequantize is dequantize
