"""How the tiles of a weight matrix come to shared memory, for CUDA: copied as they are, or dequantized on the way.

The order of the inputs that are summed is free. Threads load 16 bytes at a time, of codes more than the 8 inputs of a
chunk: 16 (8 bits), 32 (4 bits) or a whole group of 40 (3 bits). A step multiplies one chunk or two of each of
these vectors, whose codes stay in registers for the steps that they last, and takes the same inputs of the other
operand. A step's codes are dequantized while the tensor cores multiply what came before.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH, swizzled
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import Tile
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if, load_registers, store_registers
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import dequantize, load_scale
from gecko_mlc.tir_kernels.hardware import divide

Expr = Any

CHUNKS = 8  # of 8 inputs, in a row of a tile
# Vectors of a row that a thread holds: the memory takes longer than the steps of one.
SETS = 2


class WeightTiles(NamedTuple):
    """The `steps` of a product, and inlines that bring each one's tile of weights.

    first_input(step, chunk) is the first of the 8 inputs that lie in that chunk of a tile's rows. A thread holds
    codes in `registers` uint32: `start(held, source)` begins to load the first, and
    `load(tiles, place, held, source, step)` makes the step's tile at tiles[place], and begins to load what later ones
    need. Steps are loaded in their order. `source` is a `Source`.
    """

    steps: int
    registers: int
    first_input: Callable[[Expr, Expr], Expr]
    start: Any
    load: Any


@functools.cache
def weight_tiles(features: int, weights: WeightFormat, tile: Tile, count: int) -> WeightTiles:
    """Tiles with as many rows of each of `count` weights [O, `features`]."""
    return _dense(features, tile, count) if isinstance(weights, Dense) else _quantized(features, weights, tile, count)


def _dense(features: int, tile: Tile, count: int) -> WeightTiles:
    rows_each, rows_at_once = tile.columns // count, tile.threads // CHUNKS

    def first_input(step: Expr, chunk: Expr) -> Expr:
        return step * DEPTH + chunk * 8

    @T.inline
    def start(held, source):
        T.evaluate(0)

    @T.inline
    def load(tiles, place, held, source, step):
        chunk: T.let = source.tx % CHUNKS
        k: T.let = first_input(step, chunk)
        for i in T.unroll(tile.columns // rows_at_once):
            row: T.let = source.tx // CHUNKS + i * rows_at_once
            o: T.let = source.first + row % rows_each
            # What lies outside is read as zeros, from an address that exists.
            copy_16_if(
                T.address_of(tiles[place + swizzled(row, chunk)]),
                source.matrix.address(row // rows_each, T.min(o, source.end - 1), T.min(k, features - 8)),
                T.Cast("int32", o < source.end and k < features),
            )

    # A buffer cannot be empty.
    return WeightTiles(divide(features, DEPTH), 1, first_input, start, load)


def _quantized(features: int, layout: GroupLayout, tile: Tile, count: int) -> WeightTiles:
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
    def fetch(held, place, source, step):
        # Beyond the last are no inputs: what stands there is multiplied by zeros.
        vector: T.let = T.min(step // phases * vectors + source.tx % vectors, last)
        for i in T.unroll(loads):
            row: T.let = source.tx // vectors + i * rows_at_once
            o: T.let = T.min(source.first + row % rows_each, source.end - 1)
            load_registers(T.address_of(held[place + i * 5]), source.matrix.address(row // rows_each, o, vector * 4))
            held[place + i * 5 + 4] = load_scale(
                source.matrix.address(row // rows_each, o, offset), vector * inputs // layout.quantization.group_size
            )

    @T.inline
    def load(tiles, place, held, source, step):
        values = T.alloc_buffer((4,), "uint32", scope="local")
        for phase in T.unroll(SETS * phases):
            if step % (SETS * phases) == phase:
                for i in T.unroll(loads):
                    for c in T.unroll(chunks):
                        row: T.let = source.tx // vectors + i * rows_at_once
                        dequantize_chunk(
                            T.address_of(values[0]),
                            T.address_of(held[phase // phases * size + i * 5]),
                            phase % phases * chunks + c,
                            held[phase // phases * size + i * 5 + 4],
                        )
                        store_registers(
                            T.address_of(tiles[place + swizzled(row, source.tx % vectors * chunks + c)]),
                            T.address_of(values[0]),
                        )
                if phase % phases == phases - 1:
                    fetch(held, phase // phases * size, source, step + 1 + (SETS - 1) * phases)

    @T.inline
    def start(held, source):
        for i in T.unroll(SETS):
            fetch(held, i * size, source, i * phases)

    return WeightTiles(divide(features, vectors * inputs) * phases, SETS * size, first_input, start, load)
