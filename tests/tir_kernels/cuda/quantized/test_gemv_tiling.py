"""How outputs are shared among blocks."""

from __future__ import annotations

import itertools

import pytest
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.gemv.quantized_tiling import MAX_TILES, Tiling, share_blocks
from gecko_mlc.tir_kernels.cuda.gemv.schedule import BLOCKS
from gecko_mlc.tir_kernels.hardware import CUDA


@pytest.mark.parametrize("tiles", [[1], [40, 3], [256, 64, 256, 256], [20000]])
def test_blocks_fill_the_gpu_once(tiles: list[int]) -> None:
    """No more than are resident at a time, unless a block would have too many tiles."""
    blocks = share_blocks(tiles)
    assert all(1 <= number <= extent for number, extent in zip(blocks, tiles, strict=True))
    assert all(-(-extent // number) <= MAX_TILES for number, extent in zip(blocks, tiles, strict=True))
    assert sum(blocks) >= min(BLOCKS, sum(tiles))


@pytest.mark.parametrize(("extents", "multiple"), [((100, 4096), None), ((4096,), 32)])
def test_every_output_is_of_one_block(extents: tuple[int, ...], multiple: int | None) -> None:
    tiling = Tiling(256, extents, format_of("q4f16_1"), 1, None, CUDA((80,)), multiple)
    for matrix, extent in enumerate(extents):
        firsts = [tiling.first_output(block, matrix) for block in range(tiling.blocks[matrix] + 1)]
        assert firsts[0] == 0 and firsts[-1] >= extent
        assert all(0 < b - a <= tiling.block_outputs for a, b in itertools.pairwise(firsts))
