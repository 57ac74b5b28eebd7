"""The multistage pipeline of a GEMM on the tensor cores: operands are copied to shared memory a few steps ahead."""

import functools
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import BlockTile
from gecko_mlc.tir_kernels.cuda.gemm.mma import fence_shared, mma_tiles, wait_mma
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import commit_copies, wait_copies


class Pipeline(NamedTuple):
    """Inlines that share `load(stage, step)`, which copies a step's tiles, and `steps`, the number of all steps.

    `prologue(load, steps)` begins the first copies. `mainloop(sums, left, right, load, first, end, steps)` accumulates
    the MMAs of the steps from `first` to `end`, of tiles at the addresses left(step) and right(step).
    """

    prologue: Any
    mainloop: Any


@functools.cache
def mma_pipeline(dtype: str, tile: BlockTile, transposed: bool) -> Pipeline:
    """A pipeline of `mma_tiles` in the tile's stages."""
    ahead, accumulators = tile.stages - 1 - tile.pending, tile.columns // 2
    mma_step = mma_tiles(dtype, tile.columns, transposed)
    wait_most, wait_all = wait_mma(accumulators, tile.pending), wait_mma(accumulators)

    @T.inline
    def prologue(load, steps):
        for step in T.unroll(ahead):
            if step < steps:
                load(step, step)
            commit_copies()

    @T.inline
    def mainloop(sums, left, right, load, first, end, steps):
        # Without the condition, the compiler sees a wait for MMAs that never began, and overlaps none.
        if first < end:
            for i in T.serial(end - first):
                step: T.let = first + i
                wait_copies(ahead - 1)
                fence_shared()
                T.tvm_storage_sync("shared")
                # All MMAs but the pending were finished before the barrier. An MMA is issued when the one before has
                # begun: copies come first, unless there is none to go on meanwhile.
                if tile.pending == 0:
                    mma_step(T.address_of(sums[0]), left(step), right(step))
                if step + ahead < steps:
                    load((step + ahead) % tile.stages, step + ahead)
                commit_copies()
                if tile.pending > 0:
                    mma_step(T.address_of(sums[0]), left(step), right(step))
                wait_most(T.address_of(sums[0]))
            wait_all(T.address_of(sums[0]))

    return Pipeline(prologue, mainloop)
