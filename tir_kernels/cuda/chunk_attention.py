"""Sliding chunk attention of prefill (specification 2.6), the read of the working memory (2.7) and their merge (2.8),
for CUDA.

Scores are computed twice: for the statistics of the softmax, which blocks gather over a part of the keys each, and for
the weights. That is less than keeping them in fp32. Weights, values and memory then are one matrix product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import copy_16_if, device_function
from gecko_mlc.tir_kernels.cuda.pipeline import pipeline
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.cuda.tensor_cores import DEPTH, swizzled
from gecko_mlc.tir_kernels.machine import CUDA, divide
from gecko_mlc.tir_kernels.math import MASKED, f32
from tvm import tirx
from tvm.script import tirx as T

Expr = Any

# Keys of a tile of scores on the tensor cores, and those that a block goes through.
KEYS, PART = 128, 512
PLAIN_TILE, PLAIN_DEPTH = 64, 16
LOG2_E = math.log2(math.e)


class Fragment(NamedTuple):
    """The sums of a tile that a thread holds: at(r, c) is that of row(tx, r) and column(tx, c).

    `vector` columns at a time are neighbours; `team` neighbouring threads share the rows.
    """

    rows: int
    columns: int
    vector: int
    team: int
    row: Callable[..., Expr]
    column: Callable[..., Expr]
    at: Callable[..., Expr]


class Tile(NamedTuple):
    """What a block computes: `rows` times `columns`; with one of the `stages`, not on the tensor cores."""

    rows: int
    columns: int
    threads: int
    stages: int
    pending: int = 0


PLAIN = Tile(PLAIN_TILE, PLAIN_TILE, 256, 1)
_PLAIN_FRAGMENT = Fragment(
    4,
    4,
    4,
    16,
    lambda tx, r: tx // 16 * 4 + r,
    lambda tx, c: tx % 16 * 4 + c,
    lambda r, c: r * 4 + c,
)


def _row(tx: Expr, r: Expr) -> Expr:
    return tx // 32 * 16 + tx % 32 // 4 + r * 8


# Keys come to the tensor cores in an order that leaves a thread eight neighbours.
_SCORES_FRAGMENT = Fragment(
    2,
    KEYS // 4,
    8,
    4,
    _row,
    lambda tx, c: c // 8 * 32 + tx % 4 * 8 + c % 8,
    lambda r, c: c // 2 * 4 + r * 2 + c % 2,
)


def _key(column: Expr) -> Expr:
    """The key of a tile that is a column of the product."""
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


def _values_fragment(columns: int) -> Fragment:
    return Fragment(
        2,
        columns // 4,
        2,
        4,
        _row,
        lambda tx, c: c // 2 * 8 + tx % 4 * 2 + c % 2,
        lambda r, c: c // 2 * 4 + r * 2 + c % 2,
    )


def _scores_tile(size: int, dtype: str, machine: CUDA) -> Tile:
    """Queries stay in shared memory. Two blocks on a multiprocessor, one exponentiates while the other multiplies."""
    stage = KEYS * DEPTH * 2
    for rows in (128, 64):
        queries = divide(size, DEPTH) * rows * DEPTH * 2
        for stages, blocks in ((3, 2), (4, 1), (2, 1)):
            fits = blocks * (queries + stages * stage) <= machine.shared_memory
            if dtype != "float32" and size % 8 == 0 and fits and (blocks == 2 or rows == 64):
                return Tile(rows, KEYS, 2 * rows, stages)
    return PLAIN


def _values_tile(size: int, value_size: int, dtype: str, machine: CUDA) -> Tile:
    if dtype == "float32" or size % 8 or value_size % 8:
        return PLAIN
    if value_size % 256 == 0 and machine.shared_memory >= 192 * 1024:
        return Tile(128, 256, 256, 4, pending=1)
    if value_size % 256 == 0 and machine.shared_memory >= 144 * 1024:
        return Tile(128, 256, 256, 3)
    return Tile(128, 128, 256, 3)


def padded(chunk_size: int) -> int:
    """Weights of a chunk in a row: its positions, and some more that make a whole number of tiles."""
    return int(divide(chunk_size, KEYS) * KEYS)


def parts(chunk_size: int) -> int:
    """Parts that the keys of two chunks are split into."""
    return int(2 * divide(chunk_size, PART))


@functools.cache
def _team(operation: str, lanes: int) -> device_function:
    """(value): the `sum` or `maximum` of `lanes` neighbouring lanes, in each of them."""
    name = f"gecko_team_{operation}_{lanes}"
    combine = {"sum": "value + other", "maximum": "fmaxf(value, other)"}[operation]
    source = f"""
__device__ __forceinline__ float {name}(float value) {{
#pragma unroll
  for (int lane = {lanes // 2}; lane > 0; lane /= 2) {{
    float other = __shfl_xor_sync(0xffffffffu, value, lane);
    value = {combine};
  }}
  return value;
}}
"""
    return device_function(name, source, "float32")


@T.inline
def _accumulate(left, right, sums, left_value, right_value, count, tx):
    """sums += left_value(row, k) · right_value(column, k), over `count` k, in fp32."""
    for step in T.serial(divide(count, PLAIN_DEPTH)):
        k: T.let = step * PLAIN_DEPTH + tx % PLAIN_DEPTH
        for i in T.unroll(PLAIN_TILE * PLAIN_DEPTH // 256):
            line: T.let = tx // PLAIN_DEPTH + i * (256 // PLAIN_DEPTH)
            left[tx % PLAIN_DEPTH, line] = T.if_then_else(k < count, left_value(line, k), f32(0.0))
            right[tx % PLAIN_DEPTH, line] = T.if_then_else(k < count, right_value(line, k), f32(0.0))
        T.tvm_storage_sync("shared")
        for d in T.unroll(PLAIN_DEPTH):
            for r in T.unroll(4):
                for c in T.unroll(4):
                    sums[r * 4 + c] = sums[r * 4 + c] + left[d, tx // 16 * 4 + r] * right[d, tx % 16 * 4 + c]
        T.tvm_storage_sync("shared")


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
    start, multiply = pipeline(dtype, KEYS, tile.stages, tile.pending, False)

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
    @T.inline
    def scores(query, key, n, first_row, first, end, exist, tx, finish):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        sums = T.alloc_buffer((16,), scope="local")
        for t in T.serial(divide(end - first, PLAIN_TILE)):
            j: T.let = first + t * PLAIN_TILE
            for i in T.unroll(16):
                sums[i] = T.float32(0)
            _accumulate(
                left,
                right,
                sums,
                lambda line, a: T.Cast("float32", query(T.min(first_row + line, n - 1), a)),
                lambda column, a: T.Cast("float32", key(T.min(j + column, exist - 1), a)),
                size,
                tx,
            )
            finish(sums, j)

    return scores


@functools.cache
def _part_of_scores(z_dim: int, heads: int, chunk_size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    """An inline (queries, keys, slots, position, n, row_tile, part, head, tx, begin, finish, end).

    If the tile's rows see keys of the part: begin(), finish(sums, key, seen) for tiles of scores with the keys
    from `key` on, and end(). The key j is seen by a row if j < seen(row).
    """
    size, own_parts = z_dim // heads, parts(chunk_size) // 2
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
            finish(sums, key, lambda row: T.if_then_else(which[0] == 1, offset + row + 1, chunk_size))

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
    z_dim: int, heads: int, slots: int, chunk_size: int, dtype: str, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z] of `dtype`)
    → statistics [H, P, n, 2] fp32.

    Of each of the `parts` of the keys, those of the previous chunk first: the maximum of the scores and the sum of
    their exponentials relative to it (2.6); unwritten where no row of a tile sees the part. Queries are rotated for
    the own and for the previous chunk; the tokens' own keys are in the cache.
    """
    tile = _scores_tile(z_dim // heads, dtype, machine)
    fragment = _SCORES_FRAGMENT if tile.stages > 1 else _PLAIN_FRAGMENT
    compute = _part_of_scores(z_dim, heads, chunk_size, dtype, tile)
    team_maximum, team_sum = _team("maximum", fragment.team), _team("sum", fragment.team)
    count = parts(chunk_size)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), dtype),
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
        # Of the keys that the thread has seen.
        maximum = T.alloc_buffer((fragment.rows,), scope="local")
        total = T.alloc_buffer((fragment.rows,), scope="local")
        scale = T.alloc_buffer((1,), scope="local")

        @T.inline
        def begin():
            for r in T.unroll(fragment.rows):
                # Above what is masked, whose exponential is 0 then.
                maximum[r] = f32(MASKED / 10)
                total[r] = T.float32(0)

        @T.inline
        def finish(sums, key, seen):
            for r in T.unroll(fragment.rows):
                limit: T.let = seen(row_tile * tile.rows + fragment.row(tx, r)) - key
                scale[0] = maximum[r]
                for c in T.unroll(fragment.columns):
                    sums[fragment.at(r, c)] = T.Select(
                        fragment.column(tx, c) < limit, sums[fragment.at(r, c)], f32(MASKED)
                    )
                    maximum[r] = T.max(maximum[r], sums[fragment.at(r, c)])
                total[r] = total[r] * T.exp2((scale[0] - maximum[r]) * f32(LOG2_E))
                scale[0] = maximum[r] * f32(LOG2_E)
                for c in T.unroll(fragment.columns):
                    total[r] = total[r] + T.exp2(sums[fragment.at(r, c)] * f32(LOG2_E) - scale[0])

        @T.inline
        def end():
            for r in T.unroll(fragment.rows):
                row: T.let = row_tile * tile.rows + fragment.row(tx, r)
                scale[0] = team_maximum(maximum[r])
                total[r] = team_sum(total[r] * T.exp2((maximum[r] - scale[0]) * f32(LOG2_E)))
                if tx % fragment.team == 0 and row < n:
                    statistics[head, part, row, 0] = scale[0]
                    statistics[head, part, row, 1] = total[r]

        compute(queries, keys, slot_ids, position, n, row_tile, part, head, tx, begin, finish, end)

    return kernel


@functools.cache
def attention_weights(z_dim: int, heads: int, slots: int, chunk_size: int, dtype: str, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z] of `dtype`, slots [1], position, keys [S, 2, C, Z] of `dtype`,
    statistics [H, P, n, 2] fp32) → weights [H, n, 2, K] of `dtype`, K = `padded`(C).

    The softmax of the scores (2.6): of the previous chunk's positions, and of the own chunk's up to the token itself.
    Zeros follow them up to the next multiple of 8; the rest is undefined, as is the first half in chunk 0.
    """
    tile = _scores_tile(z_dim // heads, dtype, machine)
    fragment = _SCORES_FRAGMENT if tile.stages > 1 else _PLAIN_FRAGMENT
    compute = _part_of_scores(z_dim, heads, chunk_size, dtype, tile)
    count, keys_of_row, vector = parts(chunk_size), padded(chunk_size), fragment.vector

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), dtype),
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
        # The logarithm of the sum of a row's exponentials, to base 2.
        log_total = T.alloc_buffer((fragment.rows,), scope="local")
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
            for r in T.unroll(fragment.rows):
                row: T.let = T.min(row_tile * tile.rows + fragment.row(tx, r), n - 1)
                maximum[0] = f32(MASKED)
                log_total[r] = T.float32(0)

                @T.inline
                def take_maximum(part_maximum, part_total):
                    maximum[0] = T.max(maximum[0], part_maximum)

                @T.inline
                def take_total(part_maximum, part_total):
                    log_total[r] = log_total[r] + part_total * T.exp2((part_maximum - maximum[0]) * f32(LOG2_E))

                over_parts(row, take_maximum)
                over_parts(row, take_total)
                log_total[r] = T.log2(log_total[r]) + maximum[0] * f32(LOG2_E)

        @T.inline
        def finish(sums, key, seen):
            for r in T.unroll(fragment.rows):
                row: T.let = row_tile * tile.rows + fragment.row(tx, r)
                limit: T.let = seen(row) - key
                if row < n:
                    for c in T.unroll(fragment.columns // vector):
                        for v in T.unroll(vector):
                            packed[v] = T.Cast(
                                dtype,
                                T.Select(
                                    fragment.column(tx, c * vector + v) < limit,
                                    T.exp2(sums[fragment.at(r, c * vector + v)] * f32(LOG2_E) - log_total[r]),
                                    f32(0.0),
                                ),
                            )
                        for v in T.vectorized(vector):
                            weights[
                                head, row, T.Select(part < count // 2, 0, 1), key + fragment.column(tx, c * vector) + v
                            ] = packed[v]

        @T.inline
        def end():
            pass

        compute(queries, keys, slot_ids, position, n, row_tile, part, head, tx, begin, finish, end)

    return kernel


def _values_product(size: int, value_size: int, chunk_size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    """An inline (weight, value, read, memory, n, chunk, offset, first_row, first, tx, gate, sums).

    Weights times values, which `gate()` follows, and reads times memory in the same sums. weight(row, which, j) and
    value(which, j, column) are elements of the previous (0) and the own chunk (1), read(row, a) and memory(a, column)
    of the rest. The rows from `first_row`, the columns from `first` on.
    """
    if tile.stages == 1:
        return _plain_values(size, value_size, chunk_size)
    return _tensor_core_values(size, value_size, chunk_size, dtype, tile)


def _tensor_core_values(size: int, value_size: int, chunk_size: int, dtype: str, tile: Tile):  # type: ignore[no-untyped-def]
    left, right = tile.rows * DEPTH, tile.columns * DEPTH
    row_chunks, lines = tile.columns // 8, tile.threads // 8
    start, multiply = pipeline(dtype, tile.columns, tile.stages, tile.pending, True)

    @T.inline
    def product(weight, value, read, memory, n, chunk, offset, first_row, first, tx, gate, sums):
        tiles = T.alloc_buffer((tile.stages * (left + right),), dtype, scope="shared.dyn")
        previous_steps: T.let = T.Select(chunk >= 1, divide(chunk_size, DEPTH), 0)
        position_steps: T.let = previous_steps + divide(offset + T.min(n, first_row + tile.rows), DEPTH)
        # The memory is zero before chunk 2.
        steps: T.let = position_steps + T.Select(chunk >= 2, divide(size, DEPTH), 0)

        # What does not exist is read as zeros, from an address that does.
        @T.inline
        def load_left(stage, first_k, element, seen):
            for i in T.unroll(tile.rows // lines):
                line: T.let = tx // 8 + i * lines
                row: T.let = T.min(first_row + line, n - 1)
                k: T.let = first_k + tx % 8 * 8
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + swizzled(line, tx % 8)]),
                    T.address_of(element(row, k)),
                    T.Cast("int32", first_row + line < n and k < seen(row)),
                )

        @T.inline
        def load_right(stage, first_k, element, exist):
            for i in T.unroll(DEPTH * row_chunks // tile.threads):
                line: T.let = (tx + i * tile.threads) // row_chunks
                block: T.let = tx % row_chunks // 8
                column: T.let = first + tx % row_chunks * 8
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + left + block * DEPTH * DEPTH + swizzled(line, tx % 8)]),
                    T.address_of(element(T.min(first_k + line, exist - 1), T.min(column, value_size - 8))),
                    T.Cast("int32", first_k + line < exist and column < value_size),
                )

        @T.inline
        def load(stage, step):
            if step < position_steps:
                own: T.let = step >= previous_steps
                which: T.let = T.Select(own, 1, 0)
                k: T.let = (step - T.Select(own, previous_steps, 0)) * DEPTH
                load_left(
                    stage,
                    k,
                    lambda row, j: weight(row, which, j),
                    lambda row: T.Select(own, offset + row + 1, chunk_size),
                )
                load_right(stage, k, lambda j, column: value(which, j, column), T.Select(own, offset + n, chunk_size))
            else:
                a: T.let = (step - position_steps) * DEPTH
                load_left(stage, a, lambda row, k: read(row, T.min(k, size - 8)), lambda row: size)
                load_right(stage, a, memory, size)

        @T.inline
        def run(begin, end):
            multiply(
                sums,
                lambda step: T.address_of(tiles[step % tile.stages * (left + right) + tx // 128 * 64 * DEPTH]),
                lambda step: T.address_of(tiles[step % tile.stages * (left + right) + left]),
                load,
                begin,
                end,
                steps,
            )

        start(load, steps)
        run(0, position_steps)
        gate()
        run(position_steps, steps)

    return product


def _plain_values(size: int, value_size: int, chunk_size: int):  # type: ignore[no-untyped-def]
    @T.inline
    def product(weight, value, read, memory, n, chunk, offset, first_row, first, tx, gate, sums):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")

        @T.inline
        def accumulate(left_element, seen, right_element, exist, count):
            _accumulate(
                left,
                right,
                sums,
                lambda line, k: T.if_then_else(
                    T.And(first_row + line < n, k < seen(first_row + line)),
                    T.Cast("float32", left_element(first_row + line, k)),
                    f32(0.0),
                ),
                lambda column, k: T.if_then_else(
                    T.And(first + column < value_size, k < exist),
                    T.Cast("float32", right_element(k, first + column)),
                    f32(0.0),
                ),
                count,
                tx,
            )

        if chunk >= 1:
            accumulate(
                lambda row, j: weight(row, 0, j),
                lambda row: chunk_size,
                lambda j, column: value(0, j, column),
                chunk_size,
                chunk_size,
            )
        accumulate(
            lambda row, j: weight(row, 1, j),
            lambda row: offset + row + 1,
            lambda j, column: value(1, j, column),
            offset + n,
            offset + T.min(n, first_row + PLAIN_TILE),
        )
        gate()
        # The memory is zero before chunk 2.
        if chunk >= 2:
            accumulate(read, lambda row: size, memory, size, size)

    return product


@functools.cache
def attention_values(
    z_dim: int, value_dim: int, heads: int, slots: int, chunk_size: int, dtype: str, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (weights [H, n, 2, K], slots [1], position, values [S, 2, C, E], r [n, E], reads [n, Z],
    memory [S, H, dz, dv]) → merged [n, E], all of `dtype`.

    Weights · values ⊙ r + reads · memory: attention (2.6) with `attention_weights`, and the merge (2.8) with the read
    of the memory (2.7). Only what the tokens see is read.
    """
    size, value_size = z_dim // heads, value_dim // heads
    tile = _values_tile(size, value_size, dtype, machine)
    fragment = _PLAIN_FRAGMENT if tile.stages == 1 else _values_fragment(tile.columns)
    product = _values_product(size, value_size, chunk_size, dtype, tile)
    width, convert = math.gcd(value_size, fragment.vector), narrow(dtype)
    column_tiles = divide(value_size, tile.columns)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        weights_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        values: T.Buffer((slots, 2, chunk_size, value_dim), dtype),
        r_handle: T.handle,
        reads_handle: T.handle,
        memory: T.Buffer((slots, heads, size, value_size), dtype),
        merged_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        weights = T.match_buffer(weights_handle, (heads, n, 2, padded(chunk_size)), dtype)
        r = T.match_buffer(r_handle, (n, value_dim), dtype)
        reads = T.match_buffer(reads_handle, (n, z_dim), dtype)
        merged = T.match_buffer(merged_handle, (n, value_dim), dtype)
        column_tile = T.launch_thread("blockIdx.x", column_tiles)
        by = T.launch_thread("blockIdx.y", (n + tile.rows - 1) // tile.rows)
        head = T.launch_thread("blockIdx.z", heads)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        sums = T.alloc_buffer((fragment.rows * fragment.columns,), scope="local")
        held = T.alloc_buffer((width,), dtype, scope="local")
        slot: T.let = slot_ids[0]
        chunk: T.let = position[slot, 0]
        offset: T.let = position[slot, 1]
        # The last rows, which see most, begin first.
        first_row: T.let = ((n + tile.rows - 1) // tile.rows - 1 - by) * tile.rows
        first: T.let = column_tile * tile.columns

        @T.inline
        def each(body):
            """body(row, column, at), for `width` neighbours sums[at(v)] at a time."""
            for i in T.unroll(fragment.rows):
                for c in T.unroll(fragment.columns // width):
                    row: T.let = first_row + fragment.row(tx, i)
                    column: T.let = first + fragment.column(tx, c * width)
                    if row < n and column < value_size:
                        body(row, head * value_size + column, lambda v: fragment.at(i, c * width + v))

        @T.inline
        def multiply(row, column, at):
            for v in T.vectorized(width):
                held[v] = r[row, column + v]
            for v in T.unroll(width):
                sums[at(v)] = sums[at(v)] * T.Cast("float32", held[v])

        @T.inline
        def store(row, column, at):
            for v in T.unroll(width):
                held[v] = convert(sums[at(v)])
            for v in T.vectorized(width):
                merged[row, column + v] = held[v]

        @T.inline
        def gate():
            each(multiply)

        for i in T.unroll(fragment.rows * fragment.columns):
            sums[i] = T.float32(0)
        product(
            lambda row, which, j: weights[head, row, which, j],
            lambda which, j, column: values[slot, (chunk + 1 - which) % 2, j, head * value_size + column],
            lambda row, a: reads[row, head * size + a],
            lambda a, column: memory[slot, head, a, column],
            n,
            chunk,
            offset,
            first_row,
            first,
            tx,
            gate,
            sums,
        )
        each(store)

    return kernel
