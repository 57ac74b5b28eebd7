"""What the memory predicts is taken off what a chunk adds to it."""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K
from gecko_mlc.tir_kernels.cuda.gemm.transposed import ROWS, THREADS, offset_in_a, offset_in_b, transposed_gemm
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if
from gecko_mlc.tir_kernels.expressions import loader
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window


@functools.cache
def update(window: Window) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory [S, H, dz, dv] of the keys' dtype, memory_sum [S, H, dz, dv + dz]).

    At the end of a chunk the first dv columns of `memory_sum` become U = Σ_j s_j v_j − Pᵀ M. Does nothing before there
    is a memory: at the end of chunks 0 and 1.
    """
    size, value_size, heads, cache_dtype = window.head_dim, window.value_head_dim, window.heads, window.key_dtype
    gemm, load = transposed_gemm(window.key_dtype, size, value_size), loader(cache_dtype)

    @kernel
    def compute(
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        memory: T.Buffer(window.memory, cache_dtype),
        memory_sum: T.Buffer((*window.log_norm, value_size + size), "float32"),
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        bx = T.launch_thread("blockIdx.x", divide(value_size, gemm.columns))
        by = T.launch_thread("blockIdx.y", divide(size, ROWS))
        bz = T.launch_thread("blockIdx.z", b * heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer((gemm.shared,), gemm.dtype, scope="shared.dyn")
        sums = T.alloc_buffer((gemm.accumulators,), scope="local")
        held = T.alloc_buffer((8,), scope="local")
        rounded = T.alloc_buffer((8,), cache_dtype, scope="local")
        slot: T.let = slot_ids[bz // heads]
        head: T.let = bz % heads
        first_row: T.let = by * ROWS
        first_column: T.let = bx * gemm.columns

        @T.inline
        def start(row, column, at):
            for v in T.unroll(gemm.width):
                sums[at + v] = T.float32(0)

        @T.inline
        def finish(row, column, at):
            if first_row + row < size and first_column + column < value_size:
                for v in T.vectorized(gemm.width):
                    memory_sum[slot, head, first_row + row, first_column + column + v] = (
                        memory_sum[slot, head, first_row + row, first_column + column + v] - sums[at + v]
                    )

        @T.inline
        def fetch(stage, step):
            for i in T.unroll(4):
                feature: T.let = step * TILE_K + i * 16 + tx // 16
                column: T.let = first_column + tx % 16 * 8
                copy_16_if(
                    T.address_of(tiles[stage + offset_in_b(i, tx)]),
                    T.address_of(memory[slot, head, T.min(feature, size - 1), T.min(column, value_size - 8)]),
                    T.Cast("int32", feature < size and column < value_size),
                )

        @T.inline
        def prepare(stage, step):
            for i in T.unroll(2):
                feature: T.let = step * TILE_K + i * 32 + tx // 8
                row: T.let = first_row + tx % 8 * 8
                for v in T.unroll(8):
                    held[v] = T.float32(0)
                if feature < size and row < size:
                    for k in T.unroll(2):
                        for v in T.vectorized(4):
                            held[k * 4 + v] = memory_sum[slot, head, feature, value_size + row + k * 4 + v]
                for v in T.unroll(8):
                    rounded[v] = T.Cast(cache_dtype, held[v])
                for v in T.vectorized(8):
                    tiles[stage + offset_in_a(i, tx) + v] = rounded[v]

        @T.inline
        def fill(k, step):
            feature: T.let = step * gemm.tile_k + k
            for v in T.unroll(2):
                held[v] = T.float32(0)
            if feature < size and first_row + tx % ROWS < size:
                held[0] = memory_sum[slot, head, feature, value_size + first_row + tx % ROWS]
            if feature < size and first_column + tx % ROWS < value_size:
                held[1] = load(memory, slot, head, feature, first_column + tx % ROWS)
            for v in T.unroll(2):
                tiles[(k * 2 + v) * ROWS + tx % ROWS] = held[v]

        if position[slot, 0] >= 2:
            if gemm.simt:
                gemm.run(start, fill, divide(size, gemm.tile_k), tiles, sums, tx)
            else:
                gemm.run(start, fetch, prepare, divide(size, TILE_K), tiles, sums, tx)
            gemm.each(finish, tx)

    return compute
