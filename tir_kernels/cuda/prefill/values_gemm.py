"""The GEMM of attention's values in prefill: weights times values over the positions, and reads times memory over its
rows, in the same accumulators; the gate is applied between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT, SIMT_TILE, SIMT_TILE_K, BlockTile
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, swizzle
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import mma_pipeline
from gecko_mlc.tir_kernels.cuda.gemm.simt import simt_mainloop
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if, load_registers, store_registers
from gecko_mlc.tir_kernels.cuda.state.value_cache import widen_codes
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.shapes import Window


class ValueOperands(NamedTuple):
    """Elements of the operands: weights times values, and reads times memory.

    weight(row, which, j) and value(which, j, column) are elements of the previous (0) and the own chunk (1), the value
    a code that scale(which, j) multiplies if values are of int8; read(row, a) and memory(a, column) those of the rest.
    """

    weight: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]
    scale: Callable[[Expr, Expr], Expr]
    read: Callable[[Expr, Expr], Expr]
    memory: Callable[[Expr, Expr], Expr]


def values_tile(window: Window, dtype: str, hardware: CUDA) -> BlockTile:
    """The largest tile of weights of `dtype` times values that fits shared memory."""
    size, value_size = window.head_dim, window.value_head_dim
    if dtype == "float32" or window.key_dtype != dtype or size % 8 or value_size % (16 if window.scaled else 8):
        return SIMT
    if value_size % 256 == 0 and hardware.shared_memory >= 192 * 1024:
        return BlockTile(128, 256, stages=4, pending=1)
    if value_size % 256 == 0 and hardware.shared_memory >= 144 * 1024:
        return BlockTile(128, 256, stages=3)
    return BlockTile(128, 128, stages=3)


def values_gemm(window: Window, dtype: str, tile: BlockTile) -> Any:
    """An inline (operands, n, chunk, offset, first_row, first, tx, gate, sums).

    Accumulates weights times values, expands gate(), and accumulates reads times memory in the same sums: the rows
    from `first_row`, the columns from `first` on.
    """
    return _simt_gemm(window) if tile.simt else _mma_gemm(window, dtype, tile)


def _mma_gemm(window: Window, dtype: str, tile: BlockTile) -> Any:
    size, value_size, chunk_size = window.head_dim, window.value_head_dim, window.chunk_size
    left, right = tile.rows * TILE_K, tile.columns * TILE_K
    row_chunks, lines = tile.columns // 8, tile.threads // 8
    prologue, mainloop = mma_pipeline(dtype, tile, True)
    # Codes are loaded 16 at a time.
    vectors = tile.columns // 16
    code_lines = tile.threads // vectors
    code_loads = TILE_K // code_lines
    widen = widen_codes(dtype)

    @T.inline
    def gemm(operands, n, chunk, offset, first_row, first, tx, gate, sums):
        codes = T.alloc_buffer((code_loads, 4), "uint32", scope="local")
        scales = T.alloc_buffer((code_loads,), scope="local")
        widened = T.alloc_buffer((4,), "uint32", scope="local")
        tiles = T.alloc_buffer((tile.stages * (left + right),), dtype, scope="shared.dyn")
        previous_steps: T.let = T.Select(chunk >= 1, divide(chunk_size, TILE_K), 0)
        position_steps: T.let = previous_steps + divide(offset + T.min(n, first_row + tile.rows), TILE_K)
        # The memory is zero before chunk 2.
        steps: T.let = position_steps + T.Select(chunk >= 2, divide(size, TILE_K), 0)

        # What does not exist is read as zeros, from an address that does.
        @T.inline
        def load_left(stage, first_k, element, seen):
            for i in T.unroll(tile.rows // lines):
                line: T.let = tx // 8 + i * lines
                row: T.let = T.min(first_row + line, n - 1)
                k: T.let = first_k + tx % 8 * 8
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + swizzle(line, tx % 8)]),
                    T.address_of(element(row, k)),
                    T.Cast("int32", first_row + line < n and k < seen(row)),
                )

        @T.inline
        def load_right(stage, first_k, element, exist):
            for i in T.unroll(TILE_K * row_chunks // tile.threads):
                line: T.let = tx // row_chunks + i * (tile.threads // row_chunks)
                block: T.let = tx % row_chunks // 8
                column: T.let = first + tx % row_chunks * 8
                copy_16_if(
                    T.address_of(
                        tiles[stage * (left + right) + left + block * TILE_K * TILE_K + swizzle(line, tx % 8)]
                    ),
                    T.address_of(element(T.min(first_k + line, exist - 1), T.min(column, value_size - 8))),
                    T.Cast("int32", first_k + line < exist and column < value_size),
                )

        @T.inline
        def fetch_codes(step):
            """Begin to load the codes of a step, and their scales: zeros of what does not exist."""
            if step < position_steps:
                own: T.let = step >= previous_steps
                which: T.let = T.Select(own, 1, 0)
                k: T.let = (step - T.Select(own, previous_steps, 0)) * TILE_K
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
                                + chunk_of_8 // 8 * TILE_K * TILE_K
                                + swizzle(line, chunk_of_8 % 8)
                            ]
                        ),
                        T.address_of(widened[0]),
                    )

        @T.inline
        def load(stage, step):
            if step < position_steps:
                own: T.let = step >= previous_steps
                which: T.let = T.Select(own, 1, 0)
                k: T.let = (step - T.Select(own, previous_steps, 0)) * TILE_K
                load_left(
                    stage,
                    k,
                    lambda row, j: operands.weight(row, which, j),
                    lambda row: T.Select(own, offset + row + 1, chunk_size),
                )
                if window.scaled:
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
                a: T.let = (step - position_steps) * TILE_K
                load_left(stage, a, lambda row, k: operands.read(row, T.min(k, size - 8)), lambda row: size)
                load_right(stage, a, operands.memory, size)

        @T.inline
        def run(begin, end):
            mainloop(
                sums,
                lambda step: T.address_of(tiles[step % tile.stages * (left + right) + tx // 128 * 64 * TILE_K]),
                lambda step: T.address_of(tiles[step % tile.stages * (left + right) + left]),
                load,
                begin,
                end,
                steps,
            )

        if window.scaled:
            fetch_codes(0)
        prologue(load, steps)
        run(0, position_steps)
        gate()
        if chunk >= 2:
            run(position_steps, steps)

    return gemm


def _simt_gemm(window: Window) -> Any:
    size, value_size, chunk_size = window.head_dim, window.value_head_dim, window.chunk_size
    mainloop = simt_mainloop()

    def value(operands: ValueOperands, which: int, j: Expr, column: Expr) -> Expr:
        number = T.Cast("float32", operands.value(which, j, column))
        return number * operands.scale(which, j) if window.scaled else number

    @T.inline
    def gemm(operands, n, chunk, offset, first_row, first, tx, gate, sums):
        left = T.alloc_buffer((SIMT_TILE_K, SIMT_TILE + 1), scope="shared")
        right = T.alloc_buffer((1, SIMT_TILE_K, SIMT_TILE + 1), scope="shared")

        @T.inline
        def accumulate(left_element, seen, right_element, exist, count):
            mainloop(
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
            accumulate(
                lambda row, j: operands.weight(row, 0, j),
                lambda row: chunk_size,
                lambda j, column: value(operands, 0, j, column),
                chunk_size,
                chunk_size,
            )
        accumulate(
            lambda row, j: operands.weight(row, 1, j),
            lambda row: offset + row + 1,
            lambda j, column: value(operands, 1, j, column),
            offset + n,
            offset + T.min(n, first_row + SIMT_TILE),
        )
        gate()
        # The memory is zero before chunk 2.
        if chunk >= 2:
            accumulate(operands.read, lambda row: size, operands.memory, size, size)

    return gemm
