"""Matrix products of prefill with their epilogues, for CUDA: x [n, K] times a weight [O, K] transposed.

A block computes a tile of rows and columns, as in `weight_products`.
"""

import functools
import math
from typing import Any

from gecko_mlc.tir_kernels.cuda.activation import silu
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.cuda.weight_products import choose_tile, multiply_weights
from gecko_mlc.tir_kernels.cuda.weight_sources import Source, either, matrix_reader
from gecko_mlc.tir_kernels.machine import CUDA, divide
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.group_quantization import WeightFormat

Expr = Any


@functools.cache
def linear(in_features: int, out_features: int, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K]) → y [n, O] fp32."""
    tile = choose_tile(in_features, weights, machine)
    product, width = multiply_weights(in_features, weights, tile), math.gcd(out_features, 2)
    read = matrix_reader(weights, in_features)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
        y_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
        y = T.match_buffer(y_handle, (n, out_features), "float32")
        column_tile = T.launch_thread("blockIdx.y", divide(out_features, tile.columns))
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)

        @T.inline
        def finish(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.vectorized(width):
                    y[row, column + v] = sums[at + v]

            each(width, body)

        product(x, Source(read(weight), column_tile * tile.columns, out_features, tx), n, row_tile, finish)

    return kernel


@functools.cache
def linear_residual(
    in_features: int, out_features: int, weights: WeightFormat, scaled: bool, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K], scale [O] fp32 if scaled, residual [n, O] fp32)
    → residual + scale ⊙ product, [n, O] fp32."""
    tile = choose_tile(in_features, weights, machine, wide=True)
    product, width = multiply_weights(in_features, weights, tile), math.gcd(out_features, 2)
    read = matrix_reader(weights, in_features)

    @T.inline
    def compute(x, weight, scale, residual, y, n):
        column_tile = T.launch_thread("blockIdx.y", divide(out_features, tile.columns))
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)

        @T.inline
        def finish(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.vectorized(width):
                    y[row, column + v] = residual[row, column + v] + scale(column + v) * sums[at + v]

            each(width, body)

        product(x, Source(read(weight), column_tile * tile.columns, out_features, tx), n, row_tile, finish)

    # Parsing happens at definition: only the signature asked for is defined.
    if scaled:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            scale: T.Buffer((out_features,), "float32"),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: scale[o], residual, y, n)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: T.float32(1), residual, y, n)

    return kernel


@functools.cache
def value_projection(
    in_features: int,
    value_dim: int,
    slots: int,
    chunk_size: int,
    weights: WeightFormat,
    cache_dtype: str,
    machine: CUDA,
) -> tirx.PrimFunc:
    """Kernel (u [n, D], weight [E, D], bias [E], slots [1], position, values [S, 2, C, E]).

    Values silu(W u + b) (2.4) of tokens that stay within a chunk, into the slot's rows of `values`, of `cache_dtype`.
    Codes of int8 have to wait for all of a head: then it is (u, weight, bias) → v [n, E] of the arithmetic dtype.
    """
    tile = choose_tile(in_features, weights, machine)
    product, width = multiply_weights(in_features, weights, tile), math.gcd(value_dim, 2)
    read = matrix_reader(weights, in_features)
    dtype = weights.arithmetic if cache_dtype == "int8" else cache_dtype
    convert = narrow(dtype)

    @T.inline
    def compute(u, weight, bias, n, find, store):
        column_tile = T.launch_thread("blockIdx.y", divide(value_dim, tile.columns))
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        place = T.alloc_buffer((3,), "int32", scope="local")
        find(place)

        @T.inline
        def finish(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.unroll(width):
                    sums[at + v] = silu(sums[at + v] + bias[column + v])
                for v in T.vectorized(width):
                    store(place, row, column + v, convert(sums[at + v]))

            each(width, body)

        product(u, Source(read(weight), column_tile * tile.columns, value_dim, tx), n, row_tile, finish)

    # Parsing happens at definition: only the signature asked for is defined.
    if cache_dtype == "int8":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            weight: T.Buffer(weights.shape(value_dim, in_features), weights.dtype),
            bias: T.Buffer((value_dim,), "float32"),
            v_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, in_features), weights.arithmetic)
            values = T.match_buffer(v_handle, (n, value_dim), dtype)

            @T.inline
            def find(place):
                pass

            @T.inline
            def store(place, row, column, value):
                values[row, column] = value

            compute(u, weight, bias, n, find, store)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            weight: T.Buffer(weights.shape(value_dim, in_features), weights.dtype),
            bias: T.Buffer((value_dim,), "float32"),
            slot_ids: T.Buffer((1,), "int32"),
            position: T.Buffer((slots, 2), "int32"),
            values: T.Buffer((slots, 2, chunk_size, value_dim), cache_dtype),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, in_features), weights.arithmetic)

            @T.inline
            def find(place):
                place[0] = slot_ids[0]
                place[1] = position[place[0], 0] % 2
                place[2] = position[place[0], 1]

            @T.inline
            def store(place, row, column, value):
                values[place[0], place[1], place[2] + row, column] = value

            compute(u, weight, bias, n, find, store)

    return kernel


@functools.cache
def projections(dim: int, z_dim: int, value_dim: int, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (mx [n, D], wz [Z, D], its bias [Z], wr [E, D], bias [E], wh1 [D, D], bias [D], x [n, D])
    → z = wz mx + b [n, Z] fp32, r = silu(wr mx + b) [n, E], h = x + wh1 mx + b [n, D] fp32 (2.4, 2.8)."""
    tile = choose_tile(dim, weights, machine)
    product, convert = multiply_weights(dim, weights, tile), narrow(weights.arithmetic)
    read = matrix_reader(weights, dim)
    first_r = divide(z_dim, tile.columns)
    first_h = first_r + divide(value_dim, tile.columns)
    column_tiles = first_h + divide(dim, tile.columns)
    width_z, width_r, width_h = (math.gcd(features, 2) for features in (z_dim, value_dim, dim))

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        mx_handle: T.handle,
        wz: T.Buffer(weights.shape(z_dim, dim), weights.dtype),
        z_bias: T.Buffer((z_dim,), "float32"),
        wr: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
        r_bias: T.Buffer((value_dim,), "float32"),
        wh1: T.Buffer(weights.shape(dim, dim), weights.dtype),
        h_bias: T.Buffer((dim,), "float32"),
        x_handle: T.handle,
        z_handle: T.handle,
        r_handle: T.handle,
        h_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        mx = T.match_buffer(mx_handle, (n, dim), weights.arithmetic)
        x = T.match_buffer(x_handle, (n, dim), "float32")
        z = T.match_buffer(z_handle, (n, z_dim), "float32")
        r = T.match_buffer(r_handle, (n, value_dim), weights.arithmetic)
        h = T.match_buffer(h_handle, (n, dim), "float32")
        column_tile = T.launch_thread("blockIdx.y", column_tiles)
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        # The columns of the block's weight: first and end.
        span = T.alloc_buffer((2,), "int32", scope="local")
        if column_tile < first_r:
            span[0] = column_tile * tile.columns
            span[1] = z_dim
        else:
            if column_tile < first_h:
                span[0] = (column_tile - first_r) * tile.columns
                span[1] = value_dim
            else:
                span[0] = (column_tile - first_h) * tile.columns
                span[1] = dim

        @T.inline
        def finish(each):
            @T.inline
            def store_z(row, column, sums, at):
                for v in T.vectorized(width_z):
                    z[row, column + v] = sums[at + v] + z_bias[column + v]

            @T.inline
            def store_r(row, column, sums, at):
                for v in T.unroll(width_r):
                    sums[at + v] = silu(sums[at + v] + r_bias[column + v])
                for v in T.vectorized(width_r):
                    r[row, column + v] = convert(sums[at + v])

            @T.inline
            def store_h(row, column, sums, at):
                for v in T.vectorized(width_h):
                    h[row, column + v] = x[row, column + v] + (sums[at + v] + h_bias[column + v])

            if column_tile < first_r:
                each(width_z, store_z)
            else:
                if column_tile < first_h:
                    each(width_r, store_r)
                else:
                    each(width_h, store_h)

        product(
            mx,
            Source(
                either(
                    lambda _: column_tile < first_r,
                    read(wz),
                    either(lambda _: column_tile < first_h, read(wr), read(wh1)),
                ),
                span[0],
                span[1],
                tx,
            ),
            n,
            row_tile,
            finish,
        )

    return kernel


@functools.cache
def gate(dim: int, hidden: int, swiglu: bool, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (u [n, D], fc1 [F, D], fc3 [F, D] if swiglu) → silu(fc1 u) ⊙ fc3 u [n, F] (2.8)."""
    tile = choose_tile(dim, weights, machine, wide=True)
    count = 1 + swiglu
    product, convert = multiply_weights(dim, weights, tile, count), narrow(weights.arithmetic)
    read = matrix_reader(weights, dim)
    # A tile of two weights has half of its columns from each; plain ones are computed twice.
    columns = tile.columns // count if tile.stages > 1 else tile.columns
    second = tile.columns // 4 if tile.stages > 1 else 16
    width = math.gcd(hidden, 2)

    @T.inline
    def compute(u, matrix, combine, y, n):
        column_tile = T.launch_thread("blockIdx.y", divide(hidden, columns))
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)

        @T.inline
        def finish(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.unroll(width):
                    sums[at + v] = combine(sums, at + v)
                for v in T.vectorized(width):
                    y[row, column + v] = convert(sums[at + v])

            each(width, body)

        product(u, Source(matrix, column_tile * columns, hidden, tx), n, row_tile, finish)

    # Parsing happens at definition: only the signature asked for is defined.
    if swiglu:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
            y = T.match_buffer(y_handle, (n, hidden), weights.arithmetic)
            compute(
                u,
                either(lambda which: which == 0, read(fc1), read(fc3)),
                lambda sums, i: silu(sums[i]) * sums[second + i],
                y,
                n,
            )

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(u_handle: T.handle, fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
            y = T.match_buffer(y_handle, (n, hidden), weights.arithmetic)
            compute(u, read(fc1), lambda sums, i: silu(sums[i]), y, n)

    return kernel
