"""Sums of products of tiles over many steps, for CUDA: on the tensor cores, with operands that come to shared memory
a few steps ahead, or by plain multiplications."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import finish_tiles, multiply_tiles, publish_tiles
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import commit_copies, wait_copies
from gecko_mlc.tir_kernels.hardware import divide

Expr = Any

PLAIN_TILE, PLAIN_DEPTH, PLAIN_THREADS = 64, 16, 256


class Tile(NamedTuple):
    """What a block computes, and how: of `stages` in shared memory, products of the newest `pending` go on while
    others are loaded; with a single stage, by plain multiplications. So many `blocks` run on a multiprocessor."""

    rows: int
    columns: int
    stages: int = 1
    pending: int = 0
    blocks: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block: four warps for 64 rows of tensor-core products."""
        return 2 * self.rows if self.stages > 1 else PLAIN_THREADS


PLAIN = Tile(PLAIN_TILE, PLAIN_TILE)


class Fragment(NamedTuple):
    """The sums of a tile that a thread holds: at(r, c) is that of row(tx, r) and column(tx, c).

    `vector` columns at a time are neighbours; `team` neighbouring threads share the rows.
    """

    rows: int
    columns: int
    vector: int
    team: int
    row: Callable[[Expr, int], Expr]
    column: Callable[[Expr, int], Expr]
    at: Callable[[int, int], int]


def fragment(tile: Tile) -> Fragment:
    """The fragment of the products below."""
    if tile.stages == 1:
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


class Pipeline(NamedTuple):
    """Inlines that share `load(stage, step)`, which copies a step's tiles, and `steps`, the number of all steps.

    `start(load, steps)` begins the first copies. `multiply(sums, left, right, load, first, end, steps)` adds the
    products of the steps from `first` to `end`, of tiles at the addresses left(step) and right(step).
    """

    start: Any
    multiply: Any


@functools.cache
def pipeline(dtype: str, tile: Tile, transposed: bool) -> Pipeline:
    """A pipeline of `multiply_tiles`."""
    ahead, sums_count = tile.stages - 1 - tile.pending, tile.columns // 2
    multiply_step = multiply_tiles(dtype, tile.columns, transposed)
    finish_most, finish_all = finish_tiles(sums_count, tile.pending), finish_tiles(sums_count)

    @T.inline
    def start(load, steps):
        for step in T.unroll(ahead):
            if step < steps:
                load(step, step)
            commit_copies()

    @T.inline
    def multiply(sums, left, right, load, first, end, steps):
        # Without the condition, the compiler sees a wait for products that never began, and overlaps none.
        if first < end:
            for i in T.serial(end - first):
                step: T.let = first + i
                wait_copies(ahead - 1)
                publish_tiles()
                T.tvm_storage_sync("shared")
                # All products but the pending were finished before the barrier. A product is issued when the one
                # before has begun: copies come first, unless there is none to go on meanwhile.
                if tile.pending == 0:
                    multiply_step(T.address_of(sums[0]), left(step), right(step))
                if step + ahead < steps:
                    load((step + ahead) % tile.stages, step + ahead)
                commit_copies()
                if tile.pending > 0:
                    multiply_step(T.address_of(sums[0]), left(step), right(step))
                finish_most(T.address_of(sums[0]))
            finish_all(T.address_of(sums[0]))

    return Pipeline(start, multiply)


def accumulate(weights: int = 1):  # type: ignore[no-untyped-def]
    """An inline (left, right, sums, left_value, right_value, count, tx), plain multiplications in fp32.

    To sums [weights · 16], the thread's 4 rows of 4 columns, adds left_value(row, k) · right_value(w, column, k) over
    `count` k, of each of the `weights` w. left [depth, tile + 1] and right [weights, depth, tile + 1] are in shared
    memory.
    """

    @T.inline
    def add(left, right, sums, left_value, right_value, count, tx):
        for step in T.serial(divide(count, PLAIN_DEPTH)):
            k: T.let = step * PLAIN_DEPTH + tx % PLAIN_DEPTH
            for i in T.unroll(PLAIN_TILE * PLAIN_DEPTH // PLAIN_THREADS):
                line: T.let = tx // PLAIN_DEPTH + i * (PLAIN_THREADS // PLAIN_DEPTH)
                left[tx % PLAIN_DEPTH, line] = T.if_then_else(k < count, left_value(line, k), T.float32(0))
                for w in T.unroll(weights):
                    right[w, tx % PLAIN_DEPTH, line] = T.if_then_else(k < count, right_value(w, line, k), T.float32(0))
            T.tvm_storage_sync("shared")
            for d in T.unroll(PLAIN_DEPTH):
                for w in T.unroll(weights):
                    for i in T.unroll(4):
                        for j in T.unroll(4):
                            sums[w * 16 + i * 4 + j] = (
                                sums[w * 16 + i * 4 + j] + left[d, tx // 16 * 4 + i] * right[w, d, tx % 16 * 4 + j]
                            )
            T.tvm_storage_sync("shared")

    return add
