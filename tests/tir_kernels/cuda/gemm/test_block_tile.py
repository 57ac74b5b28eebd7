"""Fragments: which accumulators a thread of a block holds."""

from __future__ import annotations

import pytest

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT, BlockTile, accumulator_fragment


@pytest.mark.parametrize("tile", [SIMT, BlockTile(64, 128, stages=2), BlockTile(128, 256, stages=3)])
def test_a_fragment_holds_each_element_of_the_tile_once(tile: BlockTile) -> None:
    fragment = accumulator_fragment(tile)
    elements = [
        (fragment.row(tx, r), fragment.column(tx, c))
        for tx in range(tile.threads)
        for r in range(fragment.rows)
        for c in range(fragment.columns)
    ]
    assert sorted(elements) == [(row, column) for row in range(tile.rows) for column in range(tile.columns)]


@pytest.mark.parametrize("tile", [SIMT, BlockTile(64, 128, stages=2)])
def test_vectors_are_neighbours_and_rows_are_shared_by_neighbouring_threads(tile: BlockTile) -> None:
    fragment = accumulator_fragment(tile)
    for tx in range(tile.threads):
        first = tx // fragment.row_threads * fragment.row_threads
        for r in range(fragment.rows):
            assert fragment.row(tx, r) == fragment.row(first, r)
        for c in range(fragment.columns):
            assert fragment.column(tx, c) == fragment.column(tx, c - c % fragment.vector) + c % fragment.vector
    indices = [fragment.at(r, c) for r in range(fragment.rows) for c in range(fragment.columns)]
    assert sorted(indices) == list(range(fragment.rows * fragment.columns))
