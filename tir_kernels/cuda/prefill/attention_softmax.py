"""The softmax of sliding chunk attention (specification 2.6) in prefill, for CUDA.

Scores are computed twice: for the statistics of the softmax, which blocks gather over a part of the keys each, and for
the weights. That is less than keeping them in fp32.
"""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH, swizzled
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import (
    PLAIN,
    PLAIN_DEPTH,
    PLAIN_TILE,
    Fragment,
    Tile,
    accumulate,
    fragment,
    pipeline,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if, device_function, lane_maximum, lane_sum
from gecko_mlc.tir_kernels.expressions import MASKED, f32
from gecko_mlc.tir_kernels.hardware import CUDA, divide

Expr = Any

# Keys of a tile of scores on the tensor cores, and those that a block goes through.
KEYS, PART = 128, 512
LOG2_E = math.log2(math.e)


def _key(column: Expr) -> Expr:
    """The key of a tile that is a column of its product: in this order, eight neighbours are a thread's."""
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


def _scores_fragment(tile: Tile) -> Fragment:
    """`fragment`, with keys for columns."""
    if tile.stages == 1:
        return fragment(tile)
    return fragment(tile)._replace(vector=8, column=lambda tx, c: c // 8 * 32 + tx % 4 * 8 + c % 8)


def _scores_tile(size: int, dtype: str, key_dtype: str, machine: CUDA) -> Tile:
    """Queries stay in shared memory. Two blocks on a multiprocessor, one exponentiates while the other multiplies."""
    if dtype == "float32" or key_dtype != dtype or size % 8:
        return PLAIN
    stage = KEYS * DEPTH * 2
    for rows in (128, 64):
        queries = divide(size, DEPTH) * rows * DEPTH * 2
        for stages, blocks in ((3, 2), (4, 1), (2, 1)):
            fits = blocks * (queries + stages * stage) <= machine.shared_memory
            if fits and (blocks == 2 or rows == 64):
                return Tile(rows, KEYS, stages, blocks=blocks)
    return PLAIN


def padded(chunk_size: int) -> int:
    """Weights of a chunk in a row: its positions, and some more that make a whole number of tiles."""
    return int(divide(chunk_size, KEYS) * KEYS)


def parts(chunk_size: int) -> int:
    """Parts that the keys of two chunks are split into."""
    return int(2 * divide(chunk_size, PART))


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


def _scores(size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    """An inline (query, key, n, first_row, first, end, exist, tx, finish).

    Scores of rows from `first_row` on with keys from `first` to `end`, of which `exist`, in tiles; finish(sums, key)
    is expanded for those from `key` on. query(row, a) and key(row, a) are elements.
    """
    return _plain_scores(size) if tile.stages == 1 else _tensor_core_scores(size, dtype, tile)


def _tensor_core_scores(size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    depths = divide(size, DEPTH)
    left, right = tile.rows * DEPTH, KEYS * DEPTH
    lines = tile.threads // 8
    start, multiply = pipeline(dtype, tile, False)

    @T.inline
    def scores(query, key, n, first_row, first, end, exist, tx, finish):
        tiles = T.alloc_buffer((depths * left + tile.stages * right,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((KEYS // 2,), scope="local")
        steps: T.let = divide(end - first, KEYS) * depths

        @T.inline
        def load(stage, step):
            a: T.let = step % depths * DEPTH + tx % 8 * 8
            # What does not exist is read as zeros, from an address that does.
            for i in T.unroll(KEYS // lines):
                column: T.let = tx // 8 + i * lines
                j: T.let = first + step // depths * KEYS + _key(column)
                copy_16_if(
                    T.address_of(tiles[depths * left + stage * right + swizzled(column, tx % 8)]),
                    T.address_of(key(T.min(j, exist - 1), T.min(a, size - 8))),
                    T.Cast("int32", j < exist and a < size),
                )

        for depth in T.unroll(depths):
            for i in T.unroll(tile.rows // lines):
                a: T.let = depth * DEPTH + tx % 8 * 8
                line: T.let = tx // 8 + i * lines
                copy_16_if(
                    T.address_of(tiles[depth * left + swizzled(line, tx % 8)]),
                    T.address_of(query(T.min(first_row + line, n - 1), T.min(a, size - 8))),
                    T.Cast("int32", first_row + line < n and a < size),
                )
        start(load, steps)
        for t in T.serial(divide(end - first, KEYS)):
            for i in T.unroll(KEYS // 2):
                sums[i] = T.float32(0)
            multiply(
                sums,
                lambda step: T.address_of(tiles[step % depths * left + tx // 128 * 64 * DEPTH]),
                lambda step: T.address_of(tiles[depths * left + step % tile.stages * right]),
                load,
                t * depths,
                (t + 1) * depths,
                steps,
            )
            finish(sums, first + t * KEYS)

    return scores


def _plain_scores(size: int):  # type: ignore[no-untyped-def]
    add = accumulate()

    @T.inline
    def scores(query, key, n, first_row, first, end, exist, tx, finish):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((1, PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        sums = T.alloc_buffer((16,), scope="local")
        for t in T.serial(divide(end - first, PLAIN_TILE)):
            j: T.let = first + t * PLAIN_TILE
            for i in T.unroll(16):
                sums[i] = T.float32(0)
            add(
                left,
                right,
                sums,
                lambda line, a: T.Cast("float32", query(T.min(first_row + line, n - 1), a)),
                lambda _, column, a: T.Cast("float32", key(T.min(j + column, exist - 1), a)),
                size,
                tx,
            )
            finish(sums, j)

    return scores


@functools.cache
def _part_of_scores(z_dim: int, heads: int, chunk_size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    """An inline (queries, keys, slots, position, n, row_tile, part, head, tx, begin, finish, end).

    If the tile's rows see keys of the part: begin(), finish(sums, key) for tiles of scores with the keys from `key` on,
    those that a row does not see `MASKED`, and end().
    """
    size, own_parts, thread = z_dim // heads, parts(chunk_size) // 2, _scores_fragment(tile)
    scores = _scores(size, dtype, tile)

    @T.inline
    def compute(queries, keys, slot_ids, position, n, row_tile, part, head, tx, begin, finish, end):
        slot: T.let = slot_ids[0]
        chunk: T.let = position[slot, 0]
        offset: T.let = position[slot, 1]
        # Of the part's chunk, 1 is the own: which it is, its buffer, and its keys that exist and that the tile sees.
        which = T.alloc_buffer((1,), "int32", scope="local")
        parity = T.alloc_buffer((1,), "int32", scope="local")
        exist = T.alloc_buffer((1,), "int32", scope="local")
        visible = T.alloc_buffer((1,), "int32", scope="local")
        if part < own_parts:
            which[0] = 0
            parity[0] = (chunk + 1) % 2
            exist[0] = T.Select(chunk >= 1, chunk_size, 0)
            visible[0] = exist[0]
        else:
            which[0] = 1
            parity[0] = chunk % 2
            exist[0] = offset + n
            visible[0] = T.min(exist[0], offset + (row_tile + 1) * tile.rows)
        first: T.let = part % own_parts * PART

        @T.inline
        def finish_tile(sums, key):
            # Keys beyond these are masked, a row later one more of the own chunk.
            limit: T.let = T.if_then_else(which[0] == 1, offset + row_tile * tile.rows + 1, chunk_size) - key
            if limit < tile.columns:
                for r in T.unroll(thread.rows):
                    seen: T.let = limit + which[0] * thread.row(tx, r)
                    for c in T.unroll(thread.columns):
                        if thread.column(tx, c) >= seen:
                            sums[thread.at(r, c)] = f32(MASKED)
            finish(sums, key)

        if first < visible[0]:
            begin()
            scores(
                lambda row, a: queries[row, 1 - which[0], head * size + a],
                lambda j, a: keys[slot, parity[0], j, head * size + a],
                n,
                row_tile * tile.rows,
                first,
                T.min(visible[0], first + PART),
                exist[0],
                tx,
                finish_tile,
            )
            end()

    return compute


@functools.cache
def attention_statistics(
    z_dim: int, heads: int, slots: int, chunk_size: int, dtype: str, key_dtype: str, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z] of `key_dtype`)
    → statistics [H, P, n, 2] fp32.

    Of each of the `parts` of the keys, those of the previous chunk first: the maximum of the scores and the sum of
    their exponentials relative to it (2.6); unwritten where no row of a tile sees the part. Queries are rotated for
    the own and for the previous chunk; the tokens' own keys are in the cache.
    """
    tile = _scores_tile(z_dim // heads, dtype, key_dtype, machine)
    thread = _scores_fragment(tile)
    compute = _part_of_scores(z_dim, heads, chunk_size, dtype, tile)
    team_maximum, team_sum = lane_maximum(thread.team), lane_sum(thread.team)
    count = parts(chunk_size)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        statistics_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        queries = T.match_buffer(queries_handle, (n, 2, z_dim), dtype)
        statistics = T.match_buffer(statistics_handle, (heads, count, n, 2), "float32")
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        part = T.launch_thread("blockIdx.y", count)
        head = T.launch_thread("blockIdx.z", heads)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", tile.blocks)
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
        def finish(sums, key):
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
                scale[0] = team_maximum(maximum[r])
                total[r] = team_sum(total[r] * _exp2((maximum[r] - scale[0]) * f32(LOG2_E)))
                if tx % thread.team == 0 and row < n:
                    statistics[head, part, row, 0] = scale[0]
                    statistics[head, part, row, 1] = total[r]

        compute(queries, keys, slot_ids, position, n, row_tile, part, head, tx, begin, finish, end)

    return kernel


@functools.cache
def attention_weights(
    z_dim: int, heads: int, slots: int, chunk_size: int, dtype: str, key_dtype: str, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z] of `key_dtype`,
    statistics [H, P, n, 2] fp32) → weights [H, n, 2, K] of `dtype`, K = `padded`(C).

    The softmax of the scores (2.6): of the previous chunk's positions, and of the own chunk's up to the token itself.
    Zeros follow them up to the next multiple of 8; the rest is undefined, as is the first half in chunk 0.
    """
    tile = _scores_tile(z_dim // heads, dtype, key_dtype, machine)
    thread = _scores_fragment(tile)
    compute = _part_of_scores(z_dim, heads, chunk_size, dtype, tile)
    count, keys_of_row, vector = parts(chunk_size), padded(chunk_size), thread.vector

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        statistics_handle: T.handle,
        weights_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        queries = T.match_buffer(queries_handle, (n, 2, z_dim), dtype)
        statistics = T.match_buffer(statistics_handle, (heads, count, n, 2), "float32")
        weights = T.match_buffer(weights_handle, (heads, n, 2, keys_of_row), dtype)
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        part = T.launch_thread("blockIdx.y", count)
        head = T.launch_thread("blockIdx.z", heads)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", tile.blocks)
        # The logarithm of the sum of a row's exponentials, to base 2.
        log_total = T.alloc_buffer((thread.rows,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        packed = T.alloc_buffer((vector,), dtype, scope="local")
        chunk: T.let = position[slot_ids[0], 0]
        offset: T.let = position[slot_ids[0], 1]

        @T.inline
        def over_parts(row, body):
            for p in T.serial(count):
                if T.if_then_else(p < count // 2, chunk >= 1, (p - count // 2) * PART <= offset + row):
                    body(statistics[head, p, row, 0], statistics[head, p, row, 1])

        @T.inline
        def begin():
            for r in T.unroll(thread.rows):
                row: T.let = T.min(row_tile * tile.rows + thread.row(tx, r), n - 1)
                maximum[0] = f32(MASKED)
                log_total[r] = T.float32(0)

                @T.inline
                def take_maximum(part_maximum, part_total):
                    maximum[0] = T.max(maximum[0], part_maximum)

                @T.inline
                def take_total(part_maximum, part_total):
                    log_total[r] = log_total[r] + part_total * _exp2((part_maximum - maximum[0]) * f32(LOG2_E))

                over_parts(row, take_maximum)
                over_parts(row, take_total)
                log_total[r] = T.log2(log_total[r]) + maximum[0] * f32(LOG2_E)

        @T.inline
        def finish(sums, key):
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
                                head, row, T.Select(part < count // 2, 0, 1), key + thread.column(tx, c * vector) + v
                            ] = packed[v]

        @T.inline
        def end():
            pass

        compute(queries, keys, slot_ids, position, n, row_tile, part, head, tx, begin, finish, end)

    return kernel
