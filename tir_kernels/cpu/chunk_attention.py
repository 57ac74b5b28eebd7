"""Sliding chunk attention (specification 2.6): the previous chunk whole, and the own chunk causally.

`prefill` takes tiles of rows through scores, softmax and values; `decode` splits the window of one row
into tiles of keys, which `combine` joins. Only positions that exist are read.
"""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.expressions import MASKED, exp, loader
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window

# Keys of the window that one task of `decode` takes.
DECODE_KEYS = 128


@functools.cache
def prefill(window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (queries [n, 2, Z], slots [1], position, keys, values, value_scales [S, 2, C, H] of int8 values)
    → y [n, E].

    The tokens' own keys and values are in the caches [S, 2, C, features] already; the rest is fp32.
    """
    heads, chunk_size, dz, dv = window.heads, window.chunk_size, window.head_dim, window.value_head_dim
    lanes, key_tile = hardware.lanes, hardware.tile_rows
    rows = 2 * lanes
    padded_chunk = divide(chunk_size, key_tile) * key_tile
    width = hardware.width(dv)
    vectors = 2 if dv % (2 * width) == 0 else 1
    columns = width * vectors
    row_tile = max(lanes // 2, 4)

    load, load_value = loader(window.key_dtype), loader(window.value_dtype)

    @T.inline
    def score(scores, part, query, keys, slot, parity, h, count, causal_from, maximum):
        """scores[part, key, row] for `count` keys; rows see keys up to causal_from + row."""
        for tile in T.serial(divide(count, key_tile)):
            sums = T.alloc_buffer((key_tile, rows))
            clear(sums, key_tile, rows)
            for a in T.serial(dz):
                for j in T.unroll(key_tile):
                    for v in T.unroll(2):
                        for lane in T.vectorized(lanes):
                            sums[j, v * lanes + lane] = (
                                sums[j, v * lanes + lane]
                                + load(
                                    keys,
                                    slot,
                                    parity,
                                    T.min(tile * key_tile + j, chunk_size - 1),
                                    h * dz + a,
                                )
                                * query[part, a, v * lanes + lane]
                            )
            for j in T.serial(key_tile):
                for lane in T.vectorized(rows):
                    scores[part, tile * key_tile + j, lane] = T.Select(
                        tile * key_tile + j <= causal_from + lane, sums[j, lane], T.float32(MASKED)
                    )
                for lane in T.vectorized(rows):
                    maximum[lane] = T.max(maximum[lane], scores[part, tile * key_tile + j, lane])

    @T.inline
    def exponentiate(scores, part, count, maximum, total, value_scales, slot, parity, h):
        for j in T.serial(count):
            for lane in T.vectorized(rows):
                scores[part, j, lane] = exp(scores[part, j, lane] - maximum[lane])
            for lane in T.vectorized(rows):
                total[lane] = total[lane] + scores[part, j, lane]
            if window.scaled:
                for lane in T.vectorized(rows):
                    scores[part, j, lane] = scores[part, j, lane] * value_scales[slot, parity, j, h]

    @T.inline
    def weigh(sums, scores, part, values, slot, parity, column, first_row, count):
        for j in T.serial(count):
            for i in T.unroll(row_tile):
                for v in T.unroll(vectors):
                    for lane in T.vectorized(width):
                        sums[i, v * width + lane] = sums[i, v * width + lane] + scores[
                            part, j, first_row + i
                        ] * load_value(values, slot, parity, j, column + v * width + lane)

    @kernel(value_scales=window.scaled)
    def compute(
        queries_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        queries = T.match_buffer(queries_handle, (n, 2, window.z_dim), "float32")
        y = T.match_buffer(y_handle, (n, window.value_dim), "float32")
        for task in T.parallel(divide(n, rows) * heads):
            query = T.alloc_buffer((2, dz, rows), "float32")
            scores = T.alloc_buffer((2, padded_chunk, rows), "float32")
            maximum = T.alloc_buffer((rows,))
            total = T.alloc_buffer((rows,))
            h: T.let = task % heads
            first: T.let = task // heads * rows
            slot: T.let = slot_ids[0]
            parity: T.let = position[slot, 0] % 2
            offset: T.let = position[slot, 1] + first
            own: T.let = T.min(offset + rows, position[slot, 1] + n)
            previous: T.let = T.Select(position[slot, 0] >= 1, chunk_size, 0)
            for part in T.serial(2):
                for a in T.serial(dz):
                    for i in T.serial(rows):
                        query[part, a, i] = queries[T.min(first + i, n - 1), part, h * dz + a]
            for lane in T.vectorized(rows):
                maximum[lane] = T.float32(MASKED)
                total[lane] = T.float32(0)
            score(scores, 0, query, keys, slot, parity, h, own, offset, maximum)
            score(scores, 1, query, keys, slot, 1 - parity, h, previous, chunk_size, maximum)
            exponentiate(scores, 0, own, maximum, total, value_scales, slot, parity, h)
            exponentiate(scores, 1, previous, maximum, total, value_scales, slot, 1 - parity, h)
            for block in T.serial(dv // columns):
                for group in T.serial(rows // row_tile):
                    if first + group * row_tile < n:
                        sums = T.alloc_buffer((row_tile, columns))
                        clear(sums, row_tile, columns)
                        weigh(
                            sums,
                            scores,
                            0,
                            values,
                            slot,
                            parity,
                            h * dv + block * columns,
                            group * row_tile,
                            own,
                        )
                        weigh(
                            sums,
                            scores,
                            1,
                            values,
                            slot,
                            1 - parity,
                            h * dv + block * columns,
                            group * row_tile,
                            previous,
                        )
                        for i in T.serial(T.min(row_tile, n - first - group * row_tile)):
                            for lane in T.vectorized(columns):
                                y[
                                    first + group * row_tile + i,
                                    h * dv + block * columns + lane,
                                ] = sums[i, lane] / total[group * row_tile + i]

    return compute


def decode_tiles(chunk_size: int) -> int:
    """How many tiles of keys `decode` cuts a window of two chunks into."""
    return int(2 * divide(chunk_size, DECODE_KEYS))


@functools.cache
def decode(window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (queries [b, 2, Z], slots [b], position, keys, values, value_scales [S, 2, C, H] of int8 values)
    → sums [b, H, tiles, dv], statistics [b, H, tiles, 2].

    Statistics are the maximum of a tile's scores and the sum of their exponentials; an empty tile has the
    sum 0 and leaves its sums unwritten.
    """
    heads, chunk_size, dz, dv = window.heads, window.chunk_size, window.head_dim, window.value_head_dim
    tiles = decode_tiles(chunk_size)
    key_width, width = hardware.width(dz), hardware.width(dv)

    load, load_value = loader(window.key_dtype), loader(window.value_dtype)

    @T.inline
    def score(scores, first, rows, queries, keys, i, part, slot, parity, start, h):
        sums = T.alloc_buffer((rows, key_width))
        total = T.alloc_buffer((rows,))
        clear(sums, rows, key_width)
        for a in T.serial(dz // key_width):
            for j in T.unroll(rows):
                for lane in T.vectorized(key_width):
                    sums[j, lane] = sums[j, lane] + queries[i, part, h * dz + a * key_width + lane] * load(
                        keys, slot, parity, start + first + j, h * dz + a * key_width + lane
                    )
        sum_lanes(total, sums, rows, key_width)
        for j in T.unroll(rows):
            scores[first + j] = total[j]

    @T.inline
    def weigh(sums, scores, first, rows, values, slot, parity, start, column):
        for d in T.serial(dv // width):
            for j in T.unroll(rows):
                for lane in T.vectorized(width):
                    sums[d * width + lane] = sums[d * width + lane] + scores[first + j] * load_value(
                        values, slot, parity, start + first + j, column + d * width + lane
                    )

    @kernel(value_scales=window.scaled)
    def compute(
        queries_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        sums_handle: T.handle,
        statistics_handle: T.handle,
    ):
        b = T.int32()
        queries = T.match_buffer(queries_handle, (b, 2, window.z_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        partial = T.match_buffer(sums_handle, (b, heads, tiles, dv), "float32")
        statistics = T.match_buffer(statistics_handle, (b, heads, tiles, 2), "float32")
        for task in T.parallel(b * heads * tiles):
            scores = T.alloc_buffer((DECODE_KEYS,), "float32")
            sums = T.alloc_buffer((dv,), "float32")
            maximum = T.alloc_buffer((1,))
            total = T.alloc_buffer((1,))
            i: T.let = task // (heads * tiles)
            h: T.let = task // tiles % heads
            tile: T.let = task % tiles
            slot: T.let = slot_ids[i]
            # The first half of the tiles is the own chunk's.
            part: T.let = tile // (tiles // 2)
            start: T.let = tile % (tiles // 2) * DECODE_KEYS
            parity: T.let = (position[slot, 0] + part) % 2
            end: T.let = T.Select(
                part == 0,
                position[slot, 1] + 1,
                T.Select(position[slot, 0] >= 1, chunk_size, 0),
            )
            count: T.let = T.max(0, T.min(DECODE_KEYS, end - start))
            for j in T.serial(count // 4):
                score(scores, j * 4, 4, queries, keys, i, part, slot, parity, start, h)
            for j in T.serial(count % 4):
                score(scores, count // 4 * 4 + j, 1, queries, keys, i, part, slot, parity, start, h)
            maximum[0] = T.float32(MASKED)
            total[0] = T.float32(0)
            for j in T.serial(count):
                maximum[0] = T.max(maximum[0], scores[j])
            for j in T.serial(count):
                scores[j] = exp(scores[j] - maximum[0])
            for j in T.serial(count):
                total[0] = total[0] + scores[j]
            statistics[i, h, tile, 0] = maximum[0]
            statistics[i, h, tile, 1] = total[0]
            if window.scaled:
                for j in T.serial(count):
                    scores[j] = scores[j] * value_scales[slot, parity, start + j, h]
            if count > 0:
                for d in T.serial(dv // width):
                    for lane in T.vectorized(width):
                        sums[d * width + lane] = T.float32(0)
                for j in T.serial(count // 4):
                    weigh(sums, scores, j * 4, 4, values, slot, parity, start, h * dv)
                for j in T.serial(count % 4):
                    weigh(sums, scores, count // 4 * 4 + j, 1, values, slot, parity, start, h * dv)
                for d in T.serial(dv // width):
                    for lane in T.vectorized(width):
                        partial[i, h, tile, d * width + lane] = sums[d * width + lane]

    return compute


@functools.cache
def combine(window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (sums [b, H, tiles, dv], statistics [b, H, tiles, 2]) → y [b, E], all fp32."""
    heads, dv, tiles = window.heads, window.value_head_dim, decode_tiles(window.chunk_size)
    width = hardware.width(dv)

    @kernel
    def compute(sums_handle: T.handle, statistics_handle: T.handle, y_handle: T.handle):
        b = T.int32()
        sums = T.match_buffer(sums_handle, (b, heads, tiles, dv), "float32")
        statistics = T.match_buffer(statistics_handle, (b, heads, tiles, 2), "float32")
        y = T.match_buffer(y_handle, (b, window.value_dim), "float32")
        for i, h in T.grid(b, heads):
            maximum = T.alloc_buffer((1,))
            total = T.alloc_buffer((1,))
            factor = T.alloc_buffer((1,))
            maximum[0] = T.float32(MASKED)
            for tile in T.serial(tiles):
                maximum[0] = T.max(maximum[0], statistics[i, h, tile, 0])
            total[0] = T.float32(0)
            for tile in T.serial(tiles):
                total[0] = total[0] + statistics[i, h, tile, 1] * exp(statistics[i, h, tile, 0] - maximum[0])
            for d in T.serial(dv // width):
                for lane in T.vectorized(width):
                    y[i, h * dv + d * width + lane] = T.float32(0)
            for tile in T.serial(tiles):
                if statistics[i, h, tile, 1] > T.float32(0):
                    factor[0] = exp(statistics[i, h, tile, 0] - maximum[0]) / total[0]
                    for d in T.serial(dv // width):
                        for lane in T.vectorized(width):
                            y[i, h * dv + d * width + lane] = (
                                y[i, h * dv + d * width + lane] + factor[0] * sums[i, h, tile, d * width + lane]
                            )

    return compute
