"""GEMMs with weights: a tile of rows of x [n, K] times rows of weights [O, K], accumulated in fp32.

On the tensor cores the operands come a few steps ahead. fp32, and rows of x that are no multiple of 16 bytes, go
through FMAs.
"""

from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT, SIMT_TILE, SIMT_TILE_K, BlockTile
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, swizzle
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import mma_pipeline
from gecko_mlc.tir_kernels.cuda.gemm.simt import simt_mainloop
from gecko_mlc.tir_kernels.cuda.gemm.weight_tiles import CHUNKS, weight_tiles
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if
from gecko_mlc.tir_kernels.hardware import CUDA


class Gemm(NamedTuple):
    """A block computes `tile`: `columns` of it for each weight, with `accumulators` in each thread.

    `run` is an inline (x, operand, n, row_tile, epilogue): rows of x, of the dtype that the weights stand for, times
    the rows of the `WeightOperand`. At its end epilogue(each) is expanded, in which `each(width, body)` expands
    body(row, column, sums, at) for all pairs of neighbouring columns (`width` 2; or for single ones): sums[at + v]
    belongs to column + v of the first weight.
    """

    tile: BlockTile
    columns: int
    accumulators: int
    run: Any


def weight_gemm(features: int, weights: WeightFormat, hardware: CUDA, wide: bool = False, count: int = 1) -> Gemm:
    """The GEMM of x [n, K] and `count` weights [O, K], side by side, in the tile of `select_tile`."""
    tile = select_tile(features, weights, hardware, wide)
    if tile.simt:
        return Gemm(tile, tile.columns, 16, _simt_gemm(features, count))
    columns = tile.columns // count
    return Gemm(tile, columns, columns // 2, _mma_gemm(features, weights, tile, count))


def select_tile(features: int, weights: WeightFormat, hardware: CUDA, wide: bool = False) -> BlockTile:
    """The largest tile that fits shared memory. Wide ones have a faster mainloop and a slower epilogue: they pay where
    many inputs, or two weights, are summed for an output, and where weights are dequantized, for each row of tiles
    again."""
    if weights.arithmetic == "float32" or features % 8:
        return SIMT
    if hardware.shared_memory >= 192 * 1024:
        wide = wide or not isinstance(weights, Dense)
        return BlockTile(128, 256, stages=4, pending=1) if wide else BlockTile(256, 128, stages=4, pending=1)
    if hardware.shared_memory >= 144 * 1024:
        return BlockTile(256, 128, stages=3)
    return BlockTile(128, 128, stages=3)


def _mma_gemm(features: int, weights: WeightFormat, tile: BlockTile, count: int) -> Any:
    dtype, left = weights.arithmetic, tile.rows * TILE_K
    stage_size = left + tile.columns * TILE_K
    accumulators, own_columns = tile.columns // 2, tile.columns // count
    b_tiles = weight_tiles(features, weights, tile, count)
    prologue, mainloop = mma_pipeline(dtype, tile, False)

    @T.inline
    def run(x, operand, n, row_tile, epilogue):
        tiles = T.alloc_buffer((tile.stages * stage_size,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((accumulators,), scope="local")
        held = T.alloc_buffer((b_tiles.registers,), "uint32", scope="local")

        @T.inline
        def load(stage, step):
            chunk: T.let = operand.tx % CHUNKS
            k: T.let = b_tiles.first_input(step, chunk)
            for i in T.unroll(tile.rows * CHUNKS // tile.threads):
                row: T.let = operand.tx // CHUNKS + i * (tile.threads // CHUNKS)
                # What lies outside is read as zeros, from an address that exists.
                copy_16_if(
                    T.address_of(tiles[stage * stage_size + swizzle(row, chunk)]),
                    T.address_of(x[T.min(row_tile * tile.rows + row, n - 1), T.min(k, features - 8)]),
                    T.Cast("int32", row_tile * tile.rows + row < n and k < features),
                )
            b_tiles.load(tiles, stage * stage_size + left, held, operand, step)

        @T.inline
        def each(width, body):
            for j in T.unroll(own_columns // 8):
                for i in T.unroll(2):
                    row: T.let = row_tile * tile.rows + operand.tx // 32 * 16 + operand.tx % 32 // 4 + i * 8
                    column: T.let = operand.first + j * 8 + operand.tx % 4 * 2
                    for p in T.unroll(2 // width):
                        if row < n and column + p < operand.end:
                            body(row, column + p, sums, j * 4 + i * 2 + p)

        for i in T.unroll(accumulators):
            sums[i] = T.float32(0)
        b_tiles.prologue(held, operand)
        prologue(load, b_tiles.steps)
        mainloop(
            sums,
            lambda step: T.address_of(tiles[step % tile.stages * stage_size + operand.tx // 128 * 64 * TILE_K]),
            lambda step: T.address_of(tiles[step % tile.stages * stage_size + left]),
            load,
            0,
            b_tiles.steps,
            b_tiles.steps,
        )
        epilogue(each)

    return run


def _simt_gemm(features: int, count: int) -> Any:
    mainloop = simt_mainloop(count)

    @T.inline
    def run(x, operand, n, row_tile, epilogue):
        left = T.alloc_buffer((SIMT_TILE_K, SIMT_TILE + 1), scope="shared")
        right = T.alloc_buffer((count, SIMT_TILE_K, SIMT_TILE + 1), scope="shared")
        sums = T.alloc_buffer((count * 16,), scope="local")

        @T.inline
        def each(width, body):
            for i in T.unroll(4):
                for j in T.unroll(4 // width):
                    row: T.let = row_tile * SIMT_TILE + operand.tx // 16 * 4 + i
                    column: T.let = operand.first + operand.tx % 16 * 4 + j * width
                    if row < n and column < operand.end:
                        body(row, column, sums, i * 4 + j * width)

        for i in T.unroll(count * 16):
            sums[i] = T.float32(0)
        mainloop(
            left,
            right,
            sums,
            lambda line, k: T.if_then_else(
                row_tile * SIMT_TILE + line < n, T.Cast("float32", x[row_tile * SIMT_TILE + line, k]), T.float32(0)
            ),
            lambda w, line, k: T.if_then_else(
                operand.first + line < operand.end, operand.weight.value(w, operand.first + line, k), T.float32(0)
            ),
            features,
            operand.tx,
        )
        epilogue(each)

    return run
