"""The softmax of sliding chunk attention (specification 2.6) in prefill.

Scores are computed twice: for the statistics of the softmax, which blocks gather over a split of the keys each, and for
the weights. That is less than keeping them in fp32.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.prefill.scores import (
    SPLIT,
    masked_scores,
    padded,
    scores_fragment,
    scores_tile,
    splits,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import RESIDENT_BLOCKS, device_function, lane_maximum, lane_sum
from gecko_mlc.tir_kernels.expressions import MASKED, f32
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window

LOG2_E = math.log2(math.e)

# 2^x within 2 ulp, 0 below -126.
_exp2 = device_function(
    "gecko_exp2",
    """
__device__ __forceinline__ float gecko_exp2(float x) {
  float result;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
""",
    "float32",
)


@functools.cache
def attention_statistics(window: Window, dtype: str, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z]) → statistics [H, P, n, 2] fp32.

    Of each of the `splits` of the keys, those of the previous chunk first: the maximum of the scores and the sum of
    their exponentials relative to it (2.6); unwritten where no row of a tile sees the split. Queries are rotated for
    the own and for the previous chunk; the tokens' own keys are in the cache.
    """
    heads, count = window.heads, splits(window.chunk_size)
    tile = scores_tile(window, dtype, hardware)
    thread, scores = scores_fragment(tile), masked_scores(window, dtype, tile)
    row_maximum, row_sum = lane_maximum(thread.row_threads), lane_sum(thread.row_threads)

    @kernel
    def compute(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        statistics_handle: T.handle,
    ):
        n = T.int32()
        queries = T.match_buffer(queries_handle, (n, 2, window.z_dim), dtype)
        statistics = T.match_buffer(statistics_handle, (heads, count, n, 2), "float32")
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        split = T.launch_thread("blockIdx.y", count)
        head = T.launch_thread("blockIdx.z", heads)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        T.attr(0, RESIDENT_BLOCKS, tile.resident)
        # Of the keys that the thread has seen.
        maximum = T.alloc_buffer((thread.rows,), scope="local")
        total = T.alloc_buffer((thread.rows,), scope="local")
        scale = T.alloc_buffer((1,), scope="local")

        @T.inline
        def begin():
            for r in T.unroll(thread.rows):
                # Above what is masked, whose exponential is 0 then.
                maximum[r] = f32(MASKED / 10)
                total[r] = T.float32(0)

        @T.inline
        def epilogue(sums, key):
            for r in T.unroll(thread.rows):
                scale[0] = maximum[r]
                for c in T.unroll(thread.columns):
                    maximum[r] = T.max(maximum[r], sums[thread.at(r, c)])
                total[r] = total[r] * _exp2((scale[0] - maximum[r]) * f32(LOG2_E))
                scale[0] = maximum[r] * f32(LOG2_E)
                for c in T.unroll(thread.columns):
                    total[r] = total[r] + _exp2(sums[thread.at(r, c)] * f32(LOG2_E) - scale[0])

        @T.inline
        def end():
            for r in T.unroll(thread.rows):
                row: T.let = row_tile * tile.rows + thread.row(tx, r)
                scale[0] = row_maximum(maximum[r])
                total[r] = row_sum(total[r] * _exp2((maximum[r] - scale[0]) * f32(LOG2_E)))
                if tx % thread.row_threads == 0 and row < n:
                    statistics[head, split, row, 0] = scale[0]
                    statistics[head, split, row, 1] = total[r]

        scores(queries, keys, slot_ids, position, n, row_tile, split, head, tx, begin, epilogue, end)

    return compute


@functools.cache
def attention_weights(window: Window, dtype: str, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z], statistics [H, P, n, 2] fp32)
    → weights [H, n, 2, K] of `dtype`, K = `padded`(C).

    The softmax of the scores (2.6): of the previous chunk's positions, and of the own chunk's up to the token itself.
    Zeros follow them up to the next multiple of 8; the rest is undefined, as is the first half in chunk 0.
    """
    heads, count, keys_of_row = window.heads, splits(window.chunk_size), padded(window.chunk_size)
    tile = scores_tile(window, dtype, hardware)
    thread, scores = scores_fragment(tile), masked_scores(window, dtype, tile)
    vector = thread.vector

    @kernel
    def compute(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        statistics_handle: T.handle,
        weights_handle: T.handle,
    ):
        n = T.int32()
        queries = T.match_buffer(queries_handle, (n, 2, window.z_dim), dtype)
        statistics = T.match_buffer(statistics_handle, (heads, count, n, 2), "float32")
        weights = T.match_buffer(weights_handle, (heads, n, 2, keys_of_row), dtype)
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        split = T.launch_thread("blockIdx.y", count)
        head = T.launch_thread("blockIdx.z", heads)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        T.attr(0, RESIDENT_BLOCKS, tile.resident)
        # The logarithm of the sum of a row's exponentials, to base 2.
        log_total = T.alloc_buffer((thread.rows,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        packed = T.alloc_buffer((vector,), dtype, scope="local")
        chunk: T.let = position[slot_ids[0], 0]
        offset: T.let = position[slot_ids[0], 1]

        @T.inline
        def over_splits(row, body):
            for p in T.serial(count):
                if T.if_then_else(p < count // 2, chunk >= 1, (p - count // 2) * SPLIT <= offset + row):
                    body(statistics[head, p, row, 0], statistics[head, p, row, 1])

        @T.inline
        def begin():
            for r in T.unroll(thread.rows):
                row: T.let = T.min(row_tile * tile.rows + thread.row(tx, r), n - 1)
                maximum[0] = f32(MASKED)
                log_total[r] = T.float32(0)

                @T.inline
                def take_maximum(split_maximum, split_total):
                    maximum[0] = T.max(maximum[0], split_maximum)

                @T.inline
                def take_total(split_maximum, split_total):
                    log_total[r] = log_total[r] + split_total * _exp2((split_maximum - maximum[0]) * f32(LOG2_E))

                over_splits(row, take_maximum)
                over_splits(row, take_total)
                log_total[r] = T.log2(log_total[r]) + maximum[0] * f32(LOG2_E)

        @T.inline
        def epilogue(sums, key):
            for r in T.unroll(thread.rows):
                row: T.let = row_tile * tile.rows + thread.row(tx, r)
                if row < n:
                    for c in T.unroll(thread.columns // vector):
                        for v in T.unroll(vector):
                            packed[v] = T.Cast(
                                dtype,
                                _exp2(sums[thread.at(r, c * vector + v)] * f32(LOG2_E) - log_total[r]),
                            )
                        for v in T.vectorized(vector):
                            weights[
                                head, row, T.Select(split < count // 2, 0, 1), key + thread.column(tx, c * vector) + v
                            ] = packed[v]

        @T.inline
        def end():
            pass

        scores(queries, keys, slot_ids, position, n, row_tile, split, head, tx, begin, epilogue, end)

    return compute
