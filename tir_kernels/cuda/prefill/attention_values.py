"""The values of sliding chunk attention (specification 2.6) in prefill, the read of the working memory (2.7) and their
merge (2.8), for CUDA: one matrix product over the positions, which the gate follows, and over the memory's rows."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH, swizzled
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import (
    PLAIN,
    PLAIN_DEPTH,
    PLAIN_TILE,
    Tile,
    accumulate,
    fragment,
    pipeline,
)
from gecko_mlc.tir_kernels.cuda.prefill.attention_scores import padded
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if, load_registers, store_registers
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.cuda.state.value_cache import widen_codes
from gecko_mlc.tir_kernels.expressions import f32
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.value_cache import without_scales

Expr = Any


def _tile(size: int, value_size: int, dtypes: tuple[str, str, str], machine: CUDA) -> Tile:
    dtype, key_dtype, value_dtype = dtypes
    if dtype == "float32" or key_dtype != dtype or size % 8 or value_size % (16 if value_dtype == "int8" else 8):
        return PLAIN
    if value_size % 256 == 0 and machine.shared_memory >= 192 * 1024:
        return Tile(128, 256, stages=4, pending=1)
    if value_size % 256 == 0 and machine.shared_memory >= 144 * 1024:
        return Tile(128, 256, stages=3)
    return Tile(128, 128, stages=3)


class Operands(NamedTuple):
    """What is multiplied: weights times values, and reads times memory.

    weight(row, which, j) and value(which, j, column) are elements of the previous (0) and the own chunk (1), the value
    a code that scale(which, j) multiplies if values are of int8; read(row, a) and memory(a, column) those of the rest.
    """

    weight: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]
    scale: Callable[[Expr, Expr], Expr]
    read: Callable[[Expr, Expr], Expr]
    memory: Callable[[Expr, Expr], Expr]


def _product(size: int, value_size: int, chunk_size: int, dtype: str, quantized: bool, tile: Tile):  # type: ignore[no-untyped-def]
    """An inline (operands, n, chunk, offset, first_row, first, tx, gate, sums).

    Weights times values, which `gate()` follows, and reads times memory in the same sums: the rows from `first_row`,
    the columns from `first` on.
    """
    if tile.stages == 1:
        return _plain_product(size, value_size, chunk_size, quantized)
    return _tensor_core_product(size, value_size, chunk_size, dtype, quantized, tile)


def _tensor_core_product(  # type: ignore[no-untyped-def]
    size: int, value_size: int, chunk_size: int, dtype: str, quantized: bool, tile: Tile
):
    left, right = tile.rows * DEPTH, tile.columns * DEPTH
    row_chunks, lines = tile.columns // 8, tile.threads // 8
    start, multiply = pipeline(dtype, tile, True)
    # Codes are loaded 16 at a time.
    vectors = tile.columns // 16
    code_lines = tile.threads // vectors
    code_loads = DEPTH // code_lines
    widen = widen_codes(dtype)

    @T.inline
    def product(operands, n, chunk, offset, first_row, first, tx, gate, sums):
        codes = T.alloc_buffer((code_loads, 4), "uint32", scope="local")
        scales = T.alloc_buffer((code_loads,), scope="local")
        widened = T.alloc_buffer((4,), "uint32", scope="local")
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
                line: T.let = tx // row_chunks + i * (tile.threads // row_chunks)
                block: T.let = tx % row_chunks // 8
                column: T.let = first + tx % row_chunks * 8
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + left + block * DEPTH * DEPTH + swizzled(line, tx % 8)]),
                    T.address_of(element(T.min(first_k + line, exist - 1), T.min(column, value_size - 8))),
                    T.Cast("int32", first_k + line < exist and column < value_size),
                )

        @T.inline
        def fetch_codes(step):
            """Begin to load the codes of a step, and their scales: zeros of what does not exist."""
            if step < position_steps:
                own: T.let = step >= previous_steps
                which: T.let = T.Select(own, 1, 0)
                k: T.let = (step - T.Select(own, previous_steps, 0)) * DEPTH
                exist: T.let = T.Select(own, offset + n, chunk_size)
                for i in T.unroll(code_loads):
                    j: T.let = k + tx // vectors + i * code_lines
                    column: T.let = T.min(first + tx % vectors * 16, value_size - 16)
                    load_registers(
                        T.address_of(codes[i, 0]), T.address_of(operands.value(which, T.min(j, exist - 1), column))
                    )
                    scales[i] = T.if_then_else(j < exist, operands.scale(which, T.min(j, exist - 1)), T.float32(0))

        @T.inline
        def store_codes(stage):
            """The values of the codes that were fetched, into their tile."""
            for i in T.unroll(code_loads):
                for c in T.unroll(2):
                    line: T.let = tx // vectors + i * code_lines
                    chunk_of_8: T.let = tx % vectors * 2 + c
                    widen(T.address_of(widened[0]), T.address_of(codes[i, c * 2]), scales[i])
                    store_registers(
                        T.address_of(
                            tiles[
                                stage * (left + right)
                                + left
                                + chunk_of_8 // 8 * DEPTH * DEPTH
                                + swizzled(line, chunk_of_8 % 8)
                            ]
                        ),
                        T.address_of(widened[0]),
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
                    lambda row, j: operands.weight(row, which, j),
                    lambda row: T.Select(own, offset + row + 1, chunk_size),
                )
                if quantized:
                    store_codes(stage)
                    fetch_codes(step + 1)
                else:
                    load_right(
                        stage,
                        k,
                        lambda j, column: operands.value(which, j, column),
                        T.Select(own, offset + n, chunk_size),
                    )
            else:
                a: T.let = (step - position_steps) * DEPTH
                load_left(stage, a, lambda row, k: operands.read(row, T.min(k, size - 8)), lambda row: size)
                load_right(stage, a, operands.memory, size)

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

        if quantized:
            fetch_codes(0)
        start(load, steps)
        run(0, position_steps)
        gate()
        if chunk >= 2:
            run(position_steps, steps)

    return product


def _plain_product(size: int, value_size: int, chunk_size: int, quantized: bool):  # type: ignore[no-untyped-def]
    add = accumulate()

    def value(operands: Operands, which: int, j: Expr, column: Expr) -> Expr:
        number = T.Cast("float32", operands.value(which, j, column))
        return number * operands.scale(which, j) if quantized else number

    @T.inline
    def product(operands, n, chunk, offset, first_row, first, tx, gate, sums):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((1, PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")

        @T.inline
        def add_product(left_element, seen, right_element, exist, count):
            add(
                left,
                right,
                sums,
                lambda line, k: T.if_then_else(
                    T.And(first_row + line < n, k < seen(first_row + line)),
                    T.Cast("float32", left_element(first_row + line, k)),
                    f32(0.0),
                ),
                lambda _, column, k: T.if_then_else(
                    T.And(first + column < value_size, k < exist),
                    T.Cast("float32", right_element(k, first + column)),
                    f32(0.0),
                ),
                count,
                tx,
            )

        if chunk >= 1:
            add_product(
                lambda row, j: operands.weight(row, 0, j),
                lambda row: chunk_size,
                lambda j, column: value(operands, 0, j, column),
                chunk_size,
                chunk_size,
            )
        add_product(
            lambda row, j: operands.weight(row, 1, j),
            lambda row: offset + row + 1,
            lambda j, column: value(operands, 1, j, column),
            offset + n,
            offset + T.min(n, first_row + PLAIN_TILE),
        )
        gate()
        # The memory is zero before chunk 2.
        if chunk >= 2:
            add_product(operands.read, lambda row: size, operands.memory, size, size)

    return product


@functools.cache
def attention_values(
    z_dim: int,
    value_dim: int,
    heads: int,
    slots: int,
    chunk_size: int,
    dtype: str,
    key_dtype: str,
    value_dtype: str,
    machine: CUDA,
) -> tirx.PrimFunc:
    """Kernel (weights [H, n, 2, K], slots [1], position, values [S, 2, C, E] of `value_dtype`, value_scales
    [S, 2, C, H] of int8 values, r [n, E], reads [n, Z], memory [S, H, dz, dv] of `key_dtype`) → merged [n, E]; the rest
    of `dtype`.

    Weights · values ⊙ r + reads · memory: attention (2.6) with `attention_weights`, and the merge (2.8) with the read
    of the memory (2.7). Only what the tokens see is read.
    """
    size, value_size = z_dim // heads, value_dim // heads
    tile = _tile(size, value_size, (dtype, key_dtype, value_dtype), machine)
    thread = fragment(tile)
    product = _product(size, value_size, chunk_size, dtype, value_dtype == "int8", tile)
    width, convert = math.gcd(value_size, thread.vector), narrow(dtype)
    column_tiles = divide(value_size, tile.columns)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        weights_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        values: T.Buffer((slots, 2, chunk_size, value_dim), value_dtype),
        value_scales: T.Buffer((slots, 2, chunk_size, heads), "float32"),
        r_handle: T.handle,
        reads_handle: T.handle,
        memory: T.Buffer((slots, heads, size, value_size), key_dtype),
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
        sums = T.alloc_buffer((thread.rows * thread.columns,), scope="local")
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
            for i in T.unroll(thread.rows):
                for c in T.unroll(thread.columns // width):
                    row: T.let = first_row + thread.row(tx, i)
                    column: T.let = first + thread.column(tx, c * width)
                    if row < n and column < value_size:
                        body(row, head * value_size + column, lambda v: thread.at(i, c * width + v))

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

        for i in T.unroll(thread.rows * thread.columns):
            sums[i] = T.float32(0)
        product(
            Operands(
                lambda row, which, j: weights[head, row, which, j],
                lambda which, j, column: values[slot, (chunk + 1 - which) % 2, j, head * value_size + column],
                lambda which, j: value_scales[slot, (chunk + 1 - which) % 2, j, head],
                lambda row, a: reads[row, head * size + a],
                lambda a, column: memory[slot, head, a, column],
            ),
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

    return without_scales(kernel, value_dtype)
