"""The tiles that GEMMs with weights are computed in."""

from __future__ import annotations

import pytest
from support.gemm import BOTH, SM_86, SM_90
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT
from gecko_mlc.tir_kernels.cuda.gemm.gemm import select_tile, weight_gemm
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K
from gecko_mlc.tir_kernels.hardware import CUDA


@pytest.mark.parametrize(("scheme", "features"), [("q0f32", 64), ("q4f32_1", 64), ("q0f16", 33), ("q3f16_1", 47)])
def test_tensor_cores_take_rows_of_16_bytes_of_16_bit_values(scheme: str, features: int) -> None:
    assert select_tile(features, format_of(scheme), SM_90) == SIMT


@pytest.mark.parametrize("hardware", [BOTH, SM_90, SM_86])
@pytest.mark.parametrize("scheme", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("wide", [False, True])
def test_stages_fit_shared_memory(hardware: CUDA, scheme: str, wide: bool) -> None:
    tile = select_tile(64, format_of(scheme), hardware, wide)
    assert tile.stages * (tile.rows + tile.columns) * TILE_K * 2 <= hardware.shared_memory
    assert tile.threads <= 1024


def test_weights_side_by_side_share_the_columns_of_a_tile() -> None:
    one, two = (weight_gemm(64, format_of("q0f16"), SM_90, wide=True, count=count) for count in (1, 2))
    assert one.tile == two.tile
    assert (two.columns, two.accumulators) == (one.columns // 2, one.accumulators // 2)
