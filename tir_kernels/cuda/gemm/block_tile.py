"""The tile of a GEMM that a block computes, and the accumulators that each of its threads holds."""

from collections.abc import Callable
from typing import NamedTuple

from gecko_mlc.tir_kernels.expressions import Expr

# Without tensor cores (SIMT): rows and columns of a block's tile, and how far a step goes along K.
SIMT_TILE, SIMT_TILE_K, SIMT_THREADS = 64, 16, 256


class BlockTile(NamedTuple):
    """A block computes a tile [rows, columns] on the tensor cores, from `stages` of operands in shared memory.

    The newest `pending` MMAs run while later stages are loaded, and `resident` blocks share a multiprocessor. A single
    stage means fp32 FMAs instead of MMAs.
    """

    rows: int
    columns: int
    stages: int = 1
    pending: int = 0
    resident: int = 1

    @property
    def simt(self) -> bool:
        """Whether the tile is computed by FMAs."""
        return self.stages == 1

    @property
    def threads(self) -> int:
        """Threads of a block: four warps for 64 rows of MMAs."""
        return SIMT_THREADS if self.simt else 2 * self.rows


SIMT = BlockTile(SIMT_TILE, SIMT_TILE)


class Fragment(NamedTuple):
    """A thread's accumulators [rows, columns]: at(r, c) is the index of that of row(tx, r) and column(tx, c).

    `vector` columns at a time are neighbours; `row_threads` neighbouring threads share the rows.
    """

    rows: int
    columns: int
    vector: int
    row_threads: int
    row: Callable[[Expr, int], Expr]
    column: Callable[[Expr, int], Expr]
    at: Callable[[int, int], int]


def accumulator_fragment(tile: BlockTile) -> Fragment:
    """The fragment of a thread of the block."""
    if tile.simt:
        return Fragment(
            4,
            4,
            4,
            16,
            lambda tx, r: tx // 16 * 4 + r,
            lambda tx, c: tx % 16 * 4 + c,
            lambda r, c: r * 4 + c,
        )
    return Fragment(
        2,
        tile.columns // 4,
        2,
        4,
        lambda tx, r: tx // 32 * 16 + tx % 32 // 4 + r * 8,
        lambda tx, c: c // 2 * 8 + tx % 4 * 2 + c % 2,
        lambda r, c: c // 2 * 4 + r * 2 + c % 2,
    )
