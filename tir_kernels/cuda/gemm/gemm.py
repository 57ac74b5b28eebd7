"""Products of prefill, for CUDA: a tile of rows of x [n, K] times rows of weights [O, K], summed in fp32.

On the tensor cores the tile's operands come a few steps ahead; fp32, and rows of x that are no multiple of 16 bytes,
go through plain multiplications.
"""

from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH, swizzled
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import PLAIN, PLAIN_DEPTH, PLAIN_TILE, Tile, accumulate, pipeline
from gecko_mlc.tir_kernels.cuda.gemm.weight_tiles import CHUNKS, weight_tiles
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if
from gecko_mlc.tir_kernels.hardware import CUDA


class Product(NamedTuple):
    """Products of a block, which computes `tile`: of each weight `columns` of it, and `sums` in each thread.

    `multiply` is an inline (x, source, n, row_tile, finish): rows of x, of the dtype that the weights stand for, times
    the rows of the weights that `source` describes. At the end `finish(each)` is expanded: there `each(width, body)`
    expands body(row, column, sums, at) for all pairs of neighbouring columns (`width` 2; or for single ones).
    sums[at + v] belongs to column + v, of the first weight.
    """

    tile: Tile
    columns: int
    sums: int
    multiply: Any


def weight_product(features: int, weights: WeightFormat, machine: CUDA, wide: bool = False, count: int = 1) -> Product:
    """The product of x [n, K] with `count` weights [O, K], side by side, in the largest tile that fits; see
    `choose_tile`."""
    tile = choose_tile(features, weights, machine, wide)
    if tile.stages == 1:
        return Product(tile, tile.columns, 16, _plain_product(features, count))
    columns = tile.columns // count
    return Product(tile, columns, columns // 2, _tensor_core_product(features, weights, tile, count))


def choose_tile(features: int, weights: WeightFormat, machine: CUDA, wide: bool = False) -> Tile:
    """The largest tile that fits; `Tile.stages` is 1 for plain multiplications. Wide ones multiply faster, and end
    slower: they pay where many inputs, or two weights, are summed for an output, and where weights are dequantized,
    for each row of tiles again."""
    if weights.arithmetic == "float32" or features % 8:
        return PLAIN
    if machine.shared_memory >= 192 * 1024:
        wide = wide or not isinstance(weights, Dense)
        return Tile(128, 256, stages=4, pending=1) if wide else Tile(256, 128, stages=4, pending=1)
    if machine.shared_memory >= 144 * 1024:
        return Tile(256, 128, stages=3)
    return Tile(128, 128, stages=3)


def _tensor_core_product(features: int, weights: WeightFormat, tile: Tile, count: int):  # type: ignore[no-untyped-def]
    dtype, left = weights.arithmetic, tile.rows * DEPTH
    stage_size = left + tile.columns * DEPTH
    sums_count, own_columns = tile.columns // 2, tile.columns // count
    bring = weight_tiles(features, weights, tile, count)
    start, multiply = pipeline(dtype, tile, False)

    @T.inline
    def product(x, source, n, row_tile, finish):
        tiles = T.alloc_buffer((tile.stages * stage_size,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((sums_count,), scope="local")
        held = T.alloc_buffer((bring.registers,), "uint32", scope="local")

        @T.inline
        def load(stage, step):
            chunk: T.let = source.tx % CHUNKS
            k: T.let = bring.first_input(step, chunk)
            for i in T.unroll(tile.rows * CHUNKS // tile.threads):
                row: T.let = source.tx // CHUNKS + i * (tile.threads // CHUNKS)
                # What lies outside is read as zeros, from an address that exists.
                copy_16_if(
                    T.address_of(tiles[stage * stage_size + swizzled(row, chunk)]),
                    T.address_of(x[T.min(row_tile * tile.rows + row, n - 1), T.min(k, features - 8)]),
                    T.Cast("int32", row_tile * tile.rows + row < n and k < features),
                )
            bring.load(tiles, stage * stage_size + left, held, source, step)

        @T.inline
        def each(width, body):
            for j in T.unroll(own_columns // 8):
                for i in T.unroll(2):
                    row: T.let = row_tile * tile.rows + source.tx // 32 * 16 + source.tx % 32 // 4 + i * 8
                    column: T.let = source.first + j * 8 + source.tx % 4 * 2
                    for p in T.unroll(2 // width):
                        if row < n and column + p < source.end:
                            body(row, column + p, sums, j * 4 + i * 2 + p)

        for i in T.unroll(sums_count):
            sums[i] = T.float32(0)
        bring.start(held, source)
        start(load, bring.steps)
        multiply(
            sums,
            lambda step: T.address_of(tiles[step % tile.stages * stage_size + source.tx // 128 * 64 * DEPTH]),
            lambda step: T.address_of(tiles[step % tile.stages * stage_size + left]),
            load,
            0,
            bring.steps,
            bring.steps,
        )
        finish(each)

    return product


def _plain_product(features: int, count: int):  # type: ignore[no-untyped-def]
    add = accumulate(count)

    @T.inline
    def product(x, source, n, row_tile, finish):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((count, PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        sums = T.alloc_buffer((count * 16,), scope="local")

        @T.inline
        def each(width, body):
            for i in T.unroll(4):
                for j in T.unroll(4 // width):
                    row: T.let = row_tile * PLAIN_TILE + source.tx // 16 * 4 + i
                    column: T.let = source.first + source.tx % 16 * 4 + j * width
                    if row < n and column < source.end:
                        body(row, column, sums, i * 4 + j * width)

        for i in T.unroll(count * 16):
            sums[i] = T.float32(0)
        add(
            left,
            right,
            sums,
            lambda line, k: T.if_then_else(
                row_tile * PLAIN_TILE + line < n, T.Cast("float32", x[row_tile * PLAIN_TILE + line, k]), T.float32(0)
            ),
            lambda w, line, k: T.if_then_else(
                source.first + line < source.end, source.matrix.value(w, source.first + line, k), T.float32(0)
            ),
            features,
            source.tx,
        )
        finish(each)

    return product
