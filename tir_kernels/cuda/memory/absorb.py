"""Positions of the previous chunk are absorbed into `memory_sum`, while the tokens of the next one are consumed.

They are absorbed in tiles, tile k by the call that moves the offset to or past its end: the position tells which ones
were.
"""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.transposed import ROWS, THREADS, offset_in_a, offset_in_b, transposed_gemm
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    RESIDENT_BLOCKS,
    copy_8_if,
    copy_16_if,
    device_function,
    launch_dependents,
    select_address,
    store_registers,
    wait_for_predecessor,
)
from gecko_mlc.tir_kernels.cuda.state.value_cache import widen_codes
from gecko_mlc.tir_kernels.expressions import Expr, loader
from gecko_mlc.tir_kernels.hardware import ABSORB_TILE, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window
from gecko_mlc.tir_kernels.value_cache import value_loader

# e^x with 20 bits, and fewer where it is small: 16-bit results need no more.
_fast_exp = device_function(
    "gecko_fast_exp",
    "__device__ __forceinline__ float gecko_fast_exp(float x) { return __expf(x); }",
    "float32",
)


@functools.cache
def absorb(phase: Phase, dim: int, window: Window) -> tirx.PrimFunc:
    """Kernel (in prefill rows [n, D], slots [1] or [b], position, memory_keys [S, 2, C, Z], values [S, 2, C, E],
    value_scales [S, 2, C, H] of int8 values, log_mass [S, H, dz], log_sum [S, H, C], memory_sum [S, H, dz, dv + dz]).

    n tokens of one slot and chunk, or in decode one of each of b slots, at positions before `advance`. The tiles of the
    previous chunk that they complete are added to `memory_sum`, which begins anew with a chunk's first tile. `rows` are
    not read: they tell a prefill how many tokens there are.

    A block adds to some rows and columns. The first blocks compute the columns of P, sᵀ times κ, as κᵀ times s.
    """
    size, value_size, heads, chunk_size = window.head_dim, window.value_head_dim, window.heads, window.chunk_size
    dtype, gemm = window.key_dtype, transposed_gemm(window.key_dtype, size, value_size)
    predictions = divide(size, gemm.columns)
    load, load_value = loader(dtype), value_loader(window.value_dtype)
    widen = None if gemm.simt else widen_codes(dtype)
    decoding = phase is Phase.DECODE

    def exists(j: Expr, end: Expr) -> Expr:
        """Only the last tile of a chunk may have fewer positions."""
        return j < end if chunk_size % ABSORB_TILE else tirx.const(True, "bool")

    @kernel(rows=not decoding, value_scales=window.scaled)
    def compute(
        rows_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        log_mass: T.Buffer(window.log_norm, "float32"),
        log_sum: T.Buffer((window.slots, window.heads, window.chunk_size), "float32"),
        memory_sum: T.Buffer((*window.log_norm, value_size + size), "float32"),
    ):
        n = T.int32()
        b = T.int32()
        tokens, sequences = T.meta_var((1, b) if decoding else (n, 1))
        rows = T.match_buffer(rows_handle, (n, dim), "float32")  # noqa: F841 (the tokens' number)
        slot_ids = T.match_buffer(slots_handle, (sequences,), "int32")
        bx = T.launch_thread("blockIdx.x", predictions + divide(value_size, gemm.columns))
        by = T.launch_thread("blockIdx.y", divide(size, ROWS))
        bz = T.launch_thread("blockIdx.z", sequences * heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer((gemm.shared,), gemm.dtype, scope="shared.dyn")
        sums = T.alloc_buffer((gemm.accumulators,), scope="local")
        pair = T.alloc_buffer((2,), scope="local")
        held = T.alloc_buffer((8,), dtype, scope="local")
        held_log_mass = T.alloc_buffer((8,), scope="local")
        held_log_sum = T.alloc_buffer((2,), scope="local")
        held_scales = T.alloc_buffer((4,), scope="local")
        widened = T.alloc_buffer((4,), "uint32", scope="local")
        T.attr(0, RESIDENT_BLOCKS, 3)
        # No kernel writes the slots' numbers.
        slot: T.let = slot_ids[bz // heads]
        head: T.let = bz % heads
        predicts: T.let = bx < predictions
        copies_codes: T.let = bx >= predictions if window.scaled else tirx.const(False, "bool")
        first_row: T.let = by * ROWS
        first_column: T.let = T.Select(bx < predictions, bx, bx - predictions) * gemm.columns
        extent: T.let = T.Select(bx < predictions, size, value_size)
        # The first column's place in `memory_sum`.
        place: T.let = T.Select(bx < predictions, value_size + bx * gemm.columns, (bx - predictions) * gemm.columns)

        if decoding:
            launch_dependents()
            wait_for_predecessor()
        parity: T.let = (position[slot, 0] + 1) % 2
        offset: T.let = position[slot, 1]
        begin: T.let = offset // ABSORB_TILE * ABSORB_TILE
        end: T.let = T.Select(offset + tokens >= chunk_size, chunk_size, (offset + tokens) // ABSORB_TILE * ABSORB_TILE)

        @T.inline
        def start(row, column, at):
            for v in T.unroll(gemm.width):
                sums[at + v] = T.float32(0)
            if begin > 0 and first_row + row < size and first_column + column < extent:
                for v in T.vectorized(gemm.width):
                    sums[at + v] = memory_sum[slot, head, first_row + row, place + column + v]

        @T.inline
        def finish(row, column, at):
            if first_row + row < size and first_column + column < extent:
                for v in T.vectorized(gemm.width):
                    memory_sum[slot, head, first_row + row, place + column + v] = sums[at + v]

        @T.inline
        def copy_codes(place, i, j, column):
            """Codes come to the first half of where their values will be."""
            copy_8_if(
                T.address_of(tiles[place]),
                T.address_of(values[slot, parity, j, head * value_size + T.min(column, value_size - 8)]),
                T.Cast("int32", exists(j, end) and column < extent),
            )
            held_scales[i] = T.if_then_else(exists(j, end), value_scales[slot, parity, j, head], T.float32(0))

        @T.inline
        def copy_columns(place, j, column):
            """Of keys or values."""
            copy_16_if(
                T.address_of(tiles[place]),
                select_address(
                    predicts,
                    T.address_of(keys[slot, parity, j, head * size + T.min(column, size - 8)]),
                    T.address_of(values[slot, parity, j, head * value_size + T.min(column, value_size - 8)]),
                ),
                T.Cast("int32", exists(j, end) and column < extent),
            )

        @T.inline
        def fetch(stage, step):
            # A copy of zeros reads nothing: its position need not exist.
            for i in T.unroll(2):
                j: T.let = begin + step * ABSORB_TILE + i * 32 + tx // 8
                row: T.let = first_row + tx % 8 * 8
                copy_16_if(
                    T.address_of(tiles[stage + offset_in_a(i, tx)]),
                    T.address_of(keys[slot, parity, j, head * size + T.min(row, size - 8)]),
                    T.Cast("int32", exists(j, end) and row < size),
                )
                if predicts:
                    held_log_sum[i] = T.if_then_else(exists(j, end), log_sum[slot, head, j], T.float32(0))
            for i in T.unroll(4):
                j: T.let = begin + step * ABSORB_TILE + i * 16 + tx // 16
                column: T.let = first_column + tx % 16 * 8
                if window.scaled:
                    if copies_codes:
                        copy_codes(stage + offset_in_b(i, tx), i, j, column)
                    else:
                        copy_columns(stage + offset_in_b(i, tx), j, column)
                else:
                    copy_columns(stage + offset_in_b(i, tx), j, column)

        @T.inline
        def exponentiate(place, j, logarithm):
            """Keys become κ or shares where they lie; those of no position zeros."""
            for v in T.vectorized(8):
                held[v] = tiles[place + v]
            for v in T.unroll(8):
                held[v] = T.Cast(
                    dtype, T.if_then_else(exists(j, end), _fast_exp(load(held, v) - logarithm(v)), T.float32(0))
                )
            for v in T.vectorized(8):
                tiles[place + v] = held[v]

        @T.inline
        def widen_columns(stage):
            """Codes become values."""
            if copies_codes:
                for i in T.unroll(4):
                    place: T.let = T.address_of(tiles[stage + offset_in_b(i, tx)])
                    widen(T.address_of(widened[0]), place, held_scales[i])
                    store_registers(place, T.address_of(widened[0]))

        @T.inline
        def prepare(stage, step):
            # Of the shares' columns, which are those of A or, for P, of B.
            column: T.let = T.Select(bx < predictions, first_column + tx % 16 * 8, first_row + tx % 8 * 8)
            for v in T.unroll(8):
                held_log_mass[v] = T.float32(0)
            if column < size:
                for k in T.unroll(2):
                    for v in T.vectorized(4):
                        held_log_mass[k * 4 + v] = log_mass[slot, head, column + k * 4 + v]
            for i in T.unroll(2):
                j: T.let = begin + step * ABSORB_TILE + i * 32 + tx // 8
                if predicts:
                    exponentiate(stage + offset_in_a(i, tx), j, lambda _: held_log_sum[i])
                else:
                    exponentiate(stage + offset_in_a(i, tx), j, lambda v: held_log_mass[v])
            if predicts:
                for i in T.unroll(4):
                    j: T.let = begin + step * ABSORB_TILE + i * 16 + tx // 16
                    exponentiate(stage + offset_in_b(i, tx), j, lambda v: held_log_mass[v])
            if window.scaled:
                widen_columns(stage)

        @T.inline
        def fill(k, step):
            j: T.let = begin + step * gemm.tile_k + k
            row: T.let = first_row + tx % ROWS
            column: T.let = first_column + tx % ROWS
            for v in T.unroll(2):
                pair[v] = T.float32(0)
            if j < end and row < size:
                pair[0] = T.exp(
                    load(keys, slot, parity, j, head * size + row)
                    - T.if_then_else(predicts, log_sum[slot, head, j], log_mass[slot, head, row])
                )
            if j < end and column < extent:
                if predicts:
                    pair[1] = T.exp(load(keys, slot, parity, j, head * size + column) - log_mass[slot, head, column])
                else:
                    pair[1] = load_value(values, value_scales, head, slot, parity, j, head * value_size + column)
            for v in T.unroll(2):
                tiles[(k * 2 + v) * ROWS + tx % ROWS] = pair[v]

        if position[slot, 0] >= 1 and begin < end:
            if gemm.simt:
                gemm.run(start, fill, divide(end - begin, gemm.tile_k), tiles, sums, tx)
            else:
                gemm.run(start, fetch, prepare, divide(end - begin, ABSORB_TILE), tiles, sums, tx)
            gemm.each(finish, tx)

    return compute
