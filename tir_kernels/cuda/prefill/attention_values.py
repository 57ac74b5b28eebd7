"""The values of sliding chunk attention (specification 2.6) in prefill, the read of the working memory (2.7) and their
merge (2.8)."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import accumulator_fragment
from gecko_mlc.tir_kernels.cuda.prefill.scores import padded
from gecko_mlc.tir_kernels.cuda.prefill.values_gemm import ValueOperands, values_gemm, values_tile
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window


@functools.cache
def attention_values(window: Window, dtype: str, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (weights [H, n, 2, K], slots [1], position, values [S, 2, C, E], value_scales [S, 2, C, H] of int8 values,
    r [n, E], reads [n, Z], memory [S, H, dz, dv] of the keys' dtype) → merged [n, E]; the rest of `dtype`.

    Weights · values ⊙ r + reads · memory: attention (2.6) with `attention_weights`, and the merge (2.8) with the read
    of the memory (2.7). Only what the tokens see is read.
    """
    size, value_size, heads, value_dim = window.head_dim, window.value_head_dim, window.heads, window.value_dim
    tile = values_tile(window, dtype, hardware)
    thread, gemm = accumulator_fragment(tile), values_gemm(window, dtype, tile)
    width, convert = math.gcd(value_size, thread.vector), narrow(dtype)

    @kernel(value_scales=window.scaled)
    def compute(
        weights_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        r_handle: T.handle,
        reads_handle: T.handle,
        memory: T.Buffer(window.memory, window.key_dtype),
        merged_handle: T.handle,
    ):
        n = T.int32()
        weights = T.match_buffer(weights_handle, (heads, n, 2, padded(window.chunk_size)), dtype)
        r = T.match_buffer(r_handle, (n, value_dim), dtype)
        reads = T.match_buffer(reads_handle, (n, window.z_dim), dtype)
        merged = T.match_buffer(merged_handle, (n, value_dim), dtype)
        column_tile = T.launch_thread("blockIdx.x", divide(value_size, tile.columns))
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
        gemm(
            ValueOperands(
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

    return compute
