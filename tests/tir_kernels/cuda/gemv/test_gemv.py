"""Which form of a GEMV multiplies what."""

from __future__ import annotations

import pytest
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemv.gemv import gemv, quantized_output
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.hardware import CUDA

HARDWARE = CUDA((80,))


@pytest.mark.parametrize(
    ("scheme", "rows", "features", "rows_of_a_block"),
    [
        ("q0f32", 8, 64, 1),
        ("q0f16", 1, 64, 1),
        ("q0f16", 8, 64, 8),
        ("q0f16", 8, 60, 1),
        ("q4f16_1", 1, 64, 1),
        ("q4f16_1", 8, 64, 8),
        ("q4f32_1", 8, 64, 1),
    ],
)
def test_tensor_cores_multiply_several_rows(scheme: str, rows: int, features: int, rows_of_a_block: int) -> None:
    """Of 16 bits, where rows of the matrix begin at multiples of 16 bytes; all else goes row by row."""
    product = gemv(features, (32, 16), Matrices(format_of(scheme), rows, HARDWARE))
    assert product.rows == rows_of_a_block
    assert len(product.blocks) == 2


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="16385 inputs"):
        gemv(16385, (32,), Matrices(format_of("q0f16"), 1, HARDWARE))


@pytest.mark.parametrize(
    ("scheme", "rows", "features", "count", "quantized"),
    [
        ("q0f16", 1, 14336, 1, False),
        ("q4f16_1", 1, 14336, 1, True),
        # Two weights for each output: some blocks would have twice what others have.
        ("q4f16_1", 1, 14336, 2, False),
        ("q4f16_1", 8, 14336, 1, False),
        ("q4f16_1", 1, 100, 1, False),
        ("q3f16_1", 1, 14336, 1, False),
    ],
)
def test_outputs_are_quantized_in_multiples_of_vectors(
    scheme: str, rows: int, features: int, count: int, quantized: bool
) -> None:
    matrices = Matrices(format_of(scheme), rows, HARDWARE)
    assert (quantized_output(features, matrices, count) is not None) == quantized
