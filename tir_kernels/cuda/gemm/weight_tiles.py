"""Tiles of a weight matrix, copied to shared memory as they are, or dequantized on the way.

The order of the inputs that are summed is free. Threads load 16 bytes at a time, of codes more than the 8 inputs of a
chunk: 16 (8 bits), 32 (4 bits) or a whole group of 40 (3 bits). A step multiplies one chunk or two of each of
these vectors, whose codes stay in registers for the steps that they last, and takes the same inputs of the other
operand. A step's codes are dequantized during the MMAs of the step before.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.block_tile import BlockTile
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, swizzle
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if, load_registers, store_registers
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import dequantize, load_scale
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import divide

CHUNKS = 8  # of 8 inputs, in a row of a tile
# Vectors of a row that a thread holds: the memory takes longer than the steps of one.
SETS = 2


class WeightTiles(NamedTuple):
    """The `steps` of a GEMM along K, and inlines that load each one's tile of weights.

    first_input(step, chunk) is the first of the 8 inputs that lie in that chunk of a tile's rows. A thread holds
    codes in `registers` uint32: `prologue(held, operand)` begins to load the first, and
    `load(tiles, place, held, operand, step)` writes the step's tile to tiles[place], and begins to load what later
    ones need. Steps are loaded in their order. `operand` is a `WeightOperand`.
    """

    steps: int
    registers: int
    first_input: Callable[[Expr, Expr], Expr]
    prologue: Any
    load: Any


@functools.cache
def weight_tiles(features: int, weights: WeightFormat, tile: BlockTile, count: int) -> WeightTiles:
    """Tiles with as many rows of each of `count` weights [O, `features`]."""
    return _dense(features, tile, count) if isinstance(weights, Dense) else _quantized(features, weights, tile, count)


def _dense(features: int, tile: BlockTile, count: int) -> WeightTiles:
    rows_each, rows_at_once = tile.columns // count, tile.threads // CHUNKS

    def first_input(step: Expr, chunk: Expr) -> Expr:
        return step * TILE_K + chunk * 8

    @T.inline
    def prologue(held, operand):
        T.evaluate(0)

    @T.inline
    def load(tiles, place, held, operand, step):
        chunk: T.let = operand.tx % CHUNKS
        k: T.let = first_input(step, chunk)
        for i in T.unroll(tile.columns // rows_at_once):
            row: T.let = operand.tx // CHUNKS + i * rows_at_once
            o: T.let = operand.first + row % rows_each
            # What lies outside is read as zeros, from an address that exists.
            copy_16_if(
                T.address_of(tiles[place + swizzle(row, chunk)]),
                operand.weight.address(row // rows_each, T.min(o, operand.end - 1), T.min(k, features - 8)),
                T.Cast("int32", o < operand.end and k < features),
            )

    # A buffer cannot be empty.
    return WeightTiles(divide(features, TILE_K), 1, first_input, prologue, load)


def _quantized(features: int, layout: GroupLayout, tile: BlockTile, count: int) -> WeightTiles:
    rows_each = tile.columns // count
    inputs = 4 * layout.codes_per_word
    # Of each vector, two neighbouring chunks if their number is even: 32 bytes of the other operand, a sector.
    chunks = 2 - inputs // 8 % 2
    phases = inputs // 8 // chunks
    vectors = CHUNKS // chunks
    rows_at_once = tile.threads // vectors
    loads = tile.columns // rows_at_once
    size = 5 * loads  # of a set, with scales
    last = layout.quantization.groups(features) * layout.quantization.group_size // inputs - 1
    offset = layout.scale_offset(features)
    dequantize_chunk = dequantize(layout)

    def first_input(step: Expr, chunk: Expr) -> Expr:
        vector = step // phases * vectors + chunk // chunks
        return vector * inputs + (step % phases * chunks + chunk % chunks) * 8

    @T.inline
    def fetch(held, place, operand, step):
        # Beyond the last are no inputs: what stands there is multiplied by zeros.
        vector: T.let = T.min(step // phases * vectors + operand.tx % vectors, last)
        for i in T.unroll(loads):
            row: T.let = operand.tx // vectors + i * rows_at_once
            o: T.let = T.min(operand.first + row % rows_each, operand.end - 1)
            load_registers(T.address_of(held[place + i * 5]), operand.weight.address(row // rows_each, o, vector * 4))
            held[place + i * 5 + 4] = load_scale(
                operand.weight.address(row // rows_each, o, offset), vector * inputs // layout.quantization.group_size
            )

    @T.inline
    def load(tiles, place, held, operand, step):
        values = T.alloc_buffer((4,), "uint32", scope="local")
        for phase in T.unroll(SETS * phases):
            if step % (SETS * phases) == phase:
                for i in T.unroll(loads):
                    for c in T.unroll(chunks):
                        row: T.let = operand.tx // vectors + i * rows_at_once
                        dequantize_chunk(
                            T.address_of(values[0]),
                            T.address_of(held[phase // phases * size + i * 5]),
                            phase % phases * chunks + c,
                            held[phase // phases * size + i * 5 + 4],
                        )
                        store_registers(
                            T.address_of(tiles[place + swizzle(row, operand.tx % vectors * chunks + c)]),
                            T.address_of(values[0]),
                        )
                if phase % phases == phases - 1:
                    fetch(held, phase // phases * size, operand, step + 1 + (SETS - 1) * phases)

    @T.inline
    def prologue(held, operand):
        for i in T.unroll(SETS):
            fetch(held, i * size, operand, i * phases)

    return WeightTiles(divide(features, vectors * inputs) * phases, SETS * size, first_input, prologue, load)
