"""Products with quantized weights on a CPU, in integers: the rows of x are rounded to bytes too, group by group.

A vector load brings a word of as many outputs as the vector has lanes. Its codes are multiplied by the same inputs
for all of them and summed up in int32, exactly, so no lanes are ever added up; at the end of a group the sums take the
scales of both sides. Whatever the number of rows, an output is the same sum in the same order.
"""

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cpu.byte_dot import byte_dot
from gecko_mlc.tir_kernels.cpu.reduction import clear, max_lanes, sum_lanes
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.oracles.linear import SMALLEST

PACKED_DTYPE = "int8"
# Rows that are left over from whole tiles go in tiles of this many, and then alone.
SMALL_TILE = 4


def packed_shape(n: Expr, features: int, weights: GroupLayout, hardware: CPU) -> tuple[Expr, ...]:
    """The shape of what `pack_rows` makes: of each group its bytes, an int32 and a fp32 number."""
    group = weights.quantization
    return n, group.groups(features), group.group_size + 8


@functools.cache
def pack_rows(features: int, weights: GroupLayout, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, K]) → packed [n, groups, group + 8]: the inputs of each group as bytes, in the order in which a
    word's codes are taken out; what sums start from; the scale."""
    group = weights.quantization
    size, groups = group.group_size, group.groups(features)
    width, per_word, parts = hardware.width(size), weights.codes_per_word, weights.codes_per_word // 4
    # Codes count from 0, weights from -largest.
    offset = byte_dot(hardware, 2 * group.largest).zero - group.largest

    def source(place: Expr) -> Expr:
        """The input whose byte goes to `place` of its group: words give every `parts`-th code at a time."""
        return place // per_word * per_word + place % 4 * parts + place % per_word // 4

    @T.inline
    def pack(packed, values, i, g):
        peak = T.alloc_buffer((1,))
        total = T.alloc_buffer((1,), "int32")
        magnitudes = T.alloc_buffer((1, width))
        sums = T.alloc_buffer((1, width), "int32")
        for lane in T.vectorized(width):
            magnitudes[0, lane] = f32(SMALLEST)
            sums[0, lane] = 0
        for k in T.unroll(size // width):
            for lane in T.vectorized(width):
                magnitudes[0, lane] = T.max(magnitudes[0, lane], T.abs(values[k * width + lane]))
        max_lanes(peak, magnitudes, 1, width)
        for k in T.unroll(size // width):
            for lane in T.vectorized(width):
                values[k * width + lane] = T.nearbyint(values[k * width + lane] * (f32(127) / peak[0]))
                sums[0, lane] = sums[0, lane] + T.Cast("int32", values[k * width + lane])
        sum_lanes(total, sums, 1, width)
        for k in T.unroll(size // width):
            for lane in T.vectorized(width):
                packed[i, g, k * width + lane] = T.Cast("int8", values[source(k * width + lane)])
        packed[i, g, T.ramp(size, 1, 4)] = T.reinterpret("int8x4", total[0] * offset)
        packed[i, g, T.ramp(size + 4, 1, 4)] = T.reinterpret("int8x4", peak[0] * f32(1 / 127))

    @kernel
    def compute(x_handle: T.handle, packed_handle: T.handle):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, features), "float32")
        packed = T.match_buffer(packed_handle, (n, groups, size + 8), "int8")
        for i in T.parallel(n):
            for g in T.serial(features // size):
                values = T.alloc_buffer((size,))
                for k in T.unroll(size // width):
                    for lane in T.vectorized(width):
                        values[k * width + lane] = x[i, g * size + k * width + lane]
                pack(packed, values, i, g)
            if features % size > 0:
                rest = T.alloc_buffer((size,))
                for k in T.serial(size):
                    rest[k] = T.if_then_else(
                        k < features % size, x[i, T.min(features // size * size + k, features - 1)], f32(0)
                    )
                pack(packed, rest, i, features // size)

    return compute


def product(in_features: int, out_features: int, weights: GroupLayout, hardware: CPU) -> Any:
    """An inline function (x, packed, weight, n, depth, finish, y) that writes finish(x Wᵀ, row, output) to y [n, out].

    `packed` is what `pack_rows` makes of x; `depth` is x's width as the kernel's arguments tell it.
    """
    group, lanes = weights.quantization, hardware.lanes
    size, words, parts = group.group_size, weights.words_per_group, weights.codes_per_word // 4
    dot = byte_dot(hardware, 2 * group.largest)
    scale_words = lanes if group.scale_dtype == "float32" else lanes // 2
    offset, span, span_words = (f(in_features) for f in (weights.scale_offset, weights.span, weights.span_words))
    # An exact sum and a sum of groups for each row; codes, scales and constants want registers too.
    tile_rows = (hardware.registers - 8) // 2

    def part_of(word: Expr, part: Expr) -> Expr:
        """Four of a word's codes, one in every byte."""
        if parts == 1:
            return word
        shifted = T.shift_right(word, T.broadcast(T.Cast("uint32", part * weights.code_bits), lanes))
        return T.bitwise_and(shifted, T.broadcast(T.uint32(0x0F0F0F0F), lanes))

    def scales_of(weight: Any, block: Expr, g: Expr) -> Expr:
        bits = weight[block, T.ramp(g // span * span_words + offset + g % span * scale_words, 1, scale_words)]
        return T.Cast(f"float32x{lanes}", T.reinterpret(f"{group.scale_dtype}x{lanes}", bits))

    def int32_at(packed: Any, i: Expr, g: Expr, place: Expr) -> Expr:
        return T.reinterpret("int32", packed[i, g, T.ramp(place, 1, 4)])

    def float32_at(packed: Any, i: Expr, g: Expr, place: Expr) -> Expr:
        return T.reinterpret("float32", packed[i, g, T.ramp(place, 1, 4)])

    @T.inline
    def store(y, row, column, sums, i, finish):
        """A vector of outputs; the last block's may be cut short."""
        if out_features % lanes > 0:
            for j in T.serial(T.min(lanes, out_features - column)):
                y[row, column + j] = finish(sums[i, j], row, column + j)
        else:
            for j in T.vectorized(lanes):
                y[row, column + j] = finish(sums[i, j], row, column + j)

    @T.inline
    def tile(packed, weight, depth, block, first, rows, finish, y):
        """Rows first … first + rows of a block of outputs."""
        # Small enough each to become registers.
        sums = T.alloc_buffer((rows, lanes))
        exact = T.alloc_buffer((rows, lanes), "int32")
        codes = T.alloc_buffer((lanes,), "uint32")
        scales = T.alloc_buffer((lanes,))
        clear(sums, rows, lanes)
        # LLVM does not know how many groups there are, and so leaves the order of the reads alone.
        for g in T.serial(divide(depth, size)):
            scales[T.ramp(0, 1, lanes)] = scales_of(weight, block, g)
            for i in T.unroll(rows):
                exact[i, T.ramp(0, 1, lanes)] = T.broadcast(int32_at(packed, first + i, g, size), lanes)
            for word in T.unroll(words):
                for part in T.unroll(parts):
                    codes[T.ramp(0, 1, lanes)] = part_of(
                        weight[block, T.ramp(g // span * span_words + (g % span * words + word) * lanes, 1, lanes)],
                        part,
                    )
                    for i in T.unroll(rows):
                        exact[i, T.ramp(0, 1, lanes)] = dot.accumulate(
                            exact[i, T.ramp(0, 1, lanes)],
                            codes[T.ramp(0, 1, lanes)],
                            int32_at(packed, first + i, g, (word * parts + part) * 4),
                        )
            for i in T.unroll(rows):
                for lane in T.vectorized(lanes):
                    sums[i, lane] = sums[i, lane] + T.Cast("float32", exact[i, lane]) * (
                        scales[lane] * float32_at(packed, first + i, g, size + 4)
                    )
        for i in T.unroll(rows):
            store(y, first + i, block * lanes, sums, i, finish)

    @T.inline
    def multiply(x, packed, weight, n, depth, finish, y):
        for block in T.parallel(divide(out_features, lanes)):
            for i in T.serial(n // tile_rows):
                tile(packed, weight, depth, block, i * tile_rows, tile_rows, finish, y)
            for i in T.serial(n % tile_rows // SMALL_TILE):
                tile(packed, weight, depth, block, n // tile_rows * tile_rows + i * SMALL_TILE, SMALL_TILE, finish, y)
            for i in T.serial(n % SMALL_TILE):
                tile(packed, weight, depth, block, n // SMALL_TILE * SMALL_TILE + i, 1, finish, y)

    return multiply
