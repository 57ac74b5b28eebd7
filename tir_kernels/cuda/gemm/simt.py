"""The mainloop of a GEMM in fp32 FMAs, for operands that the tensor cores do not take."""

from typing import Any

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT_THREADS, SIMT_TILE, SIMT_TILE_K
from gecko_mlc.tir_kernels.hardware import divide


def simt_mainloop(weights: int = 1) -> Any:
    """An inline (left, right, sums, left_value, right_value, count, tx) in fp32 FMAs.

    To sums [weights · 16], the thread's 4 rows of 4 columns, adds left_value(row, k) · right_value(w, column, k) over
    `count` k, of each of the `weights` w. left [16, 65] and right [weights, 16, 65] are in shared memory.
    """

    @T.inline
    def mainloop(left, right, sums, left_value, right_value, count, tx):
        for step in T.serial(divide(count, SIMT_TILE_K)):
            k: T.let = step * SIMT_TILE_K + tx % SIMT_TILE_K
            for i in T.unroll(SIMT_TILE * SIMT_TILE_K // SIMT_THREADS):
                line: T.let = tx // SIMT_TILE_K + i * (SIMT_THREADS // SIMT_TILE_K)
                left[tx % SIMT_TILE_K, line] = T.if_then_else(k < count, left_value(line, k), T.float32(0))
                for w in T.unroll(weights):
                    right[w, tx % SIMT_TILE_K, line] = T.if_then_else(k < count, right_value(w, line, k), T.float32(0))
            T.tvm_storage_sync("shared")
            for d in T.unroll(SIMT_TILE_K):
                for w in T.unroll(weights):
                    for i in T.unroll(4):
                        for j in T.unroll(4):
                            sums[w * 16 + i * 4 + j] = (
                                sums[w * 16 + i * 4 + j] + left[d, tx // 16 * 4 + i] * right[w, d, tx % 16 * 4 + j]
                            )
            T.tvm_storage_sync("shared")

    return mainloop
