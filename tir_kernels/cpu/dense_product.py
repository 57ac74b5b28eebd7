"""Products with plain weights [out, in] as they are stored, with fp32 accumulation.

A few rows (decode, short pieces) are dot products along the weight's rows, bound by the memory's
bandwidth: every weight is read once. Many rows go through register tiles over operands packed for them.
"""

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.expressions import Expr, loader
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.kernel import kernel

PACKED_DTYPE = "float32"
# Up to this many rows, packing the weights would cost more than it saves.
FEW_ROWS = 8
# Rows of the weight that one task of the few-row form reads side by side.
DOT_ROWS = 4


def packed_shape(n: Expr, features: int, weights: Dense, hardware: CPU) -> tuple[Expr, ...]:
    """The shape of what `pack_rows` makes."""
    return divide(n, hardware.tile_rows), features, hardware.tile_rows


@functools.cache
def pack_rows(features: int, weights: Dense, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, K]) → packed [⌈n/tile⌉, K, tile]: rows of a register tile side by side, ragged ones 0.

    Writes nothing for at most `FEW_ROWS` rows, which products read from x itself.
    """
    tile = hardware.tile_rows

    @kernel
    def compute(x_handle: T.handle, packed_handle: T.handle):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, features), "float32")
        packed = T.match_buffer(packed_handle, (divide(n, tile), features, tile), "float32")
        if n > FEW_ROWS:
            for block in T.parallel(divide(n, tile)):
                if (block + 1) * tile <= n:
                    for k in T.serial(features):
                        for i in T.unroll(tile):
                            packed[block, k, i] = x[block * tile + i, k]
                else:
                    for k in T.serial(features):
                        for i in T.serial(tile):
                            if block * tile + i < n:
                                packed[block, k, i] = x[block * tile + i, k]
                            else:
                                packed[block, k, i] = T.float32(0)

    return compute


def product(in_features: int, out_features: int, weights: Dense, hardware: CPU) -> Any:
    """An inline function (x, packed, weight, n, depth, finish, y) that writes finish(x Wᵀ, row, output) to y [n, out].

    `packed` is what `pack_rows` makes of x; `depth` is x's width as the kernel's arguments tell it.
    """
    tile, lanes = hardware.tile_rows, hardware.lanes
    columns = 2 * lanes
    width = hardware.width(in_features)
    # Vectors of a weight's row, and independent sums that hide the latency of adding them up.
    steps = in_features // width
    chains = min(steps, 4)

    load = loader(weights.dtype)

    @T.inline
    def dot(x, weight, depth, i, first, rows, finish, y):
        """Outputs first … first + rows of row i; the weights' rows one after the other, so that memory is
        read in order."""
        sums = T.alloc_buffer((rows, width))
        total = T.alloc_buffer((rows,))
        for r in T.unroll(rows):
            partial = T.alloc_buffer((chains, width))
            clear(partial, chains, width)
            # LLVM does not know `depth`. If it did it would unroll the loop and reorder the reads over whole
            # rows, and the memory would deliver half as fast.
            for k in T.serial(depth // (chains * width)):
                for c in T.unroll(chains):
                    for lane in T.vectorized(width):
                        partial[c, lane] = (
                            partial[c, lane]
                            + load(weight, first + r, (k * chains + c) * width + lane)
                            * x[i, (k * chains + c) * width + lane]
                        )
            for c in T.unroll(steps % chains):
                for lane in T.vectorized(width):
                    partial[c, lane] = (
                        partial[c, lane]
                        + load(weight, first + r, (steps // chains * chains + c) * width + lane)
                        * x[i, (steps // chains * chains + c) * width + lane]
                    )
            for lane in T.vectorized(width):
                sums[r, lane] = partial[0, lane]
            for c in T.unroll(chains - 1):
                for lane in T.vectorized(width):
                    sums[r, lane] = sums[r, lane] + partial[c + 1, lane]
        sum_lanes(total, sums, rows, width)
        for r in T.unroll(rows):
            y[i, first + r] = finish(total[r], i, first + r)

    @T.inline
    def few_rows(x, weight, n, depth, finish, y):
        """Tiles of the weight's rows, each against all rows of x while it is in the cache."""
        for block in T.parallel(out_features // DOT_ROWS):
            for i in T.serial(n):
                dot(x, weight, depth, i, block * DOT_ROWS, DOT_ROWS, finish, y)
        if out_features % DOT_ROWS > 0:
            for i in T.serial(n):
                dot(
                    x,
                    weight,
                    depth,
                    i,
                    out_features // DOT_ROWS * DOT_ROWS,
                    out_features % DOT_ROWS,
                    finish,
                    y,
                )

    @T.inline
    def store(y, row, column, sums, i, finish):
        """A vector of outputs; the last block's may be cut short."""
        if out_features % columns > 0:
            for j in T.serial(T.max(T.min(lanes, out_features - column), 0)):
                y[row, column + j] = finish(sums[i, j], row, column + j)
        else:
            for j in T.vectorized(lanes):
                y[row, column + j] = finish(sums[i, j], row, column + j)

    @T.inline
    def many_rows(packed, weight, n, finish, y):
        for block in T.parallel(divide(out_features, columns)):
            panel = T.alloc_buffer((in_features, columns), "float32")
            # Small enough each to become registers.
            left = T.alloc_buffer((tile, lanes))
            right = T.alloc_buffer((tile, lanes))
            for j in T.serial(columns):
                for k in T.serial(in_features):
                    if out_features % columns > 0:
                        panel[k, j] = load(weight, T.min(block * columns + j, out_features - 1), k)
                    else:
                        panel[k, j] = load(weight, block * columns + j, k)
            for rows in T.serial(divide(n, tile)):
                clear(left, tile, lanes)
                clear(right, tile, lanes)
                for k in T.serial(in_features):
                    for i in T.unroll(tile):
                        for lane in T.vectorized(lanes):
                            left[i, lane] = left[i, lane] + packed[rows, k, i] * panel[k, lane]
                        for lane in T.vectorized(lanes):
                            right[i, lane] = right[i, lane] + packed[rows, k, i] * panel[k, lanes + lane]
                for i in T.unroll(tile):
                    if rows * tile + i < n:
                        store(y, rows * tile + i, block * columns, left, i, finish)
                        store(y, rows * tile + i, block * columns + lanes, right, i, finish)

    @T.inline
    def multiply(x, packed, weight, n, depth, finish, y):
        if n <= FEW_ROWS:
            few_rows(x, weight, n, depth, finish, y)
        else:
            many_rows(packed, weight, n, finish, y)

    return multiply
