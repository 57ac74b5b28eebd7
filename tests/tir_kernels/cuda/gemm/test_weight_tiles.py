"""The order in which a GEMM goes through its inputs."""

from __future__ import annotations

import pytest
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import BlockTile
from gecko_mlc.tir_kernels.cuda.gemm.weight_tiles import CHUNKS, weight_tiles


@pytest.mark.parametrize("scheme", ["q0f16", "q8f16_1", "q4f16_1", "q3f16_1"])
@pytest.mark.parametrize("features", [40, 200, 4096])
def test_each_chunk_of_8_inputs_is_multiplied_once(scheme: str, features: int) -> None:
    tiles = weight_tiles(features, format_of(scheme), BlockTile(128, 256, stages=4), 1)
    firsts = [tiles.first_input(step, chunk) for step in range(tiles.steps) for chunk in range(CHUNKS)]
    assert sorted(k for k in firsts if k < features) == list(range(0, features, 8))
