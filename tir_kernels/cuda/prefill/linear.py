"""Matrix products of prefill with their epilogues, for CUDA: x [n, K] times a weight [O, K] transposed.

A block computes a tile of rows and columns, as in `weight_products`. Some kernels have a last parameter for themselves,
`dequantized`: see `weight_launches`.
"""

import functools
import itertools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.gemm import Product, weight_product
from gecko_mlc.tir_kernels.cuda.gemm.launches import weight_launches
from gecko_mlc.tir_kernels.cuda.gemm.operands import Source, either, matrix_reader
from gecko_mlc.tir_kernels.cuda.ptx.activation import silu
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.hardware import CUDA, divide

Expr = Any


@functools.cache
def linear(in_features: int, out_features: int, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K]) → y [n, O] fp32."""
    product, width = weight_product(in_features, weights, machine), math.gcd(out_features, 2)
    tile, read = product.tile, matrix_reader(weights, in_features)

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

        product.multiply(x, Source(read(weight), column_tile * tile.columns, out_features, tx), n, row_tile, finish)

    return kernel


@functools.cache
def linear_residual(
    in_features: int, out_features: int, weights: WeightFormat, scaled: bool, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K], scale [O] fp32 if scaled, residual [n, O] fp32)
    → residual + scale ⊙ product, [n, O] fp32."""
    launches = weight_launches(in_features, (out_features,), weights, machine, wide=True)
    width = math.gcd(out_features, 2)

    @T.inline
    def compute(x, weight, scale, residual, y, dequantized, n):
        @T.inline
        def launch(product, matrices):
            column_tile = T.launch_thread("blockIdx.y", divide(out_features, product.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, product.tile.rows))
            tx = T.launch_thread("threadIdx.x", product.tile.threads)

            @T.inline
            def finish(each):
                @T.inline
                def body(row, column, sums, at):
                    for v in T.vectorized(width):
                        y[row, column + v] = residual[row, column + v] + scale(column + v) * sums[at + v]

                each(width, body)

            source = T.meta_var(Source(matrices[0], column_tile * product.columns, out_features, tx))
            product.multiply(x, source, n, row_tile, finish)

        launches.expand([weight], dequantized, n, launch)

    # Parsing happens at definition: only the signature asked for is defined.
    if scaled:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            scale: T.Buffer((out_features,), "float32"),
            residual_handle: T.handle,
            y_handle: T.handle,
            dequantized: T.Buffer((out_features, in_features), weights.arithmetic),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: scale[o], residual, y, dequantized, n)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            residual_handle: T.handle,
            y_handle: T.handle,
            dequantized: T.Buffer((out_features, in_features), weights.arithmetic),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: T.float32(1), residual, y, dequantized, n)

    return launches.sign(kernel)


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
    launches = weight_launches(in_features, (value_dim,), weights, machine)
    width = math.gcd(value_dim, 2)
    dtype = weights.arithmetic if cache_dtype == "int8" else cache_dtype
    convert = narrow(dtype)

    @T.inline
    def compute(u, weight, bias, dequantized, n, find, store):
        @T.inline
        def launch(product, matrices):
            column_tile = T.launch_thread("blockIdx.y", divide(value_dim, product.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, product.tile.rows))
            tx = T.launch_thread("threadIdx.x", product.tile.threads)
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

            source = T.meta_var(Source(matrices[0], column_tile * product.columns, value_dim, tx))
            product.multiply(u, source, n, row_tile, finish)

        launches.expand([weight], dequantized, n, launch)

    # Parsing happens at definition: only the signature asked for is defined.
    if cache_dtype == "int8":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            weight: T.Buffer(weights.shape(value_dim, in_features), weights.dtype),
            bias: T.Buffer((value_dim,), "float32"),
            v_handle: T.handle,
            dequantized: T.Buffer((value_dim, in_features), weights.arithmetic),
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

            compute(u, weight, bias, dequantized, n, find, store)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            weight: T.Buffer(weights.shape(value_dim, in_features), weights.dtype),
            bias: T.Buffer((value_dim,), "float32"),
            slot_ids: T.Buffer((1,), "int32"),
            position: T.Buffer((slots, 2), "int32"),
            values: T.Buffer((slots, 2, chunk_size, value_dim), cache_dtype),
            dequantized: T.Buffer((value_dim, in_features), weights.arithmetic),
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

            compute(u, weight, bias, dequantized, n, find, store)

    return launches.sign(kernel)


@functools.cache
def projections(dim: int, z_dim: int, value_dim: int, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (mx [n, D], wz [Z, D], its bias [Z], wr [E, D], bias [E], wh1 [D, D], bias [D], x [n, D])
    → z = wz mx + b [n, Z] fp32, r = silu(wr mx + b) [n, E], h = x + wh1 mx + b [n, D] fp32 (2.4, 2.8)."""
    outputs = (z_dim, value_dim, dim)
    launches = weight_launches(dim, outputs, weights, machine)
    convert = narrow(weights.arithmetic)
    width_z, width_r, width_h = (math.gcd(features, 2) for features in outputs)

    def first_tiles(product: Product) -> list[int]:
        """The first tile of columns of z, of r and of h, and the end."""
        return list(itertools.accumulate((divide(features, product.columns) for features in outputs), initial=0))

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
        dequantized: T.Buffer((sum(outputs), dim), weights.arithmetic),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        mx = T.match_buffer(mx_handle, (n, dim), weights.arithmetic)
        x = T.match_buffer(x_handle, (n, dim), "float32")
        z = T.match_buffer(z_handle, (n, z_dim), "float32")
        r = T.match_buffer(r_handle, (n, value_dim), weights.arithmetic)
        h = T.match_buffer(h_handle, (n, dim), "float32")

        @T.inline
        def launch(product, matrices):
            _, first_r, first_h, end = T.meta_var(first_tiles(product))
            column_tile = T.launch_thread("blockIdx.y", end)
            row_tile = T.launch_thread("blockIdx.x", divide(n, product.tile.rows))
            tx = T.launch_thread("threadIdx.x", product.tile.threads)
            # The columns of the block's weight: first and end.
            span = T.alloc_buffer((2,), "int32", scope="local")
            if column_tile < first_r:
                span[0] = column_tile * product.columns
                span[1] = z_dim
            else:
                if column_tile < first_h:
                    span[0] = (column_tile - first_r) * product.columns
                    span[1] = value_dim
                else:
                    span[0] = (column_tile - first_h) * product.columns
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

            of_r_or_h = T.meta_var(either(lambda _: column_tile < first_h, matrices[1], matrices[2]))
            matrix = T.meta_var(either(lambda _: column_tile < first_r, matrices[0], of_r_or_h))
            product.multiply(mx, Source(matrix, span[0], span[1], tx), n, row_tile, finish)

        launches.expand([wz, wr, wh1], dequantized, n, launch)

    return launches.sign(kernel)


@functools.cache
def gate(dim: int, hidden: int, swiglu: bool, weights: WeightFormat, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (u [n, D], fc1 [F, D], fc3 [F, D] if swiglu) → silu(fc1 u) ⊙ fc3 u [n, F] (2.8)."""
    count = 1 + swiglu
    launches = weight_launches(dim, (hidden,) * count, weights, machine, wide=True, count=count)
    width, convert = math.gcd(hidden, 2), narrow(weights.arithmetic)

    @T.inline
    def compute(u, buffers, choose, combine, y, dequantized, n):
        @T.inline
        def launch(product, matrices):
            column_tile = T.launch_thread("blockIdx.y", divide(hidden, product.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, product.tile.rows))
            tx = T.launch_thread("threadIdx.x", product.tile.threads)

            @T.inline
            def finish(each):
                @T.inline
                def body(row, column, sums, at):
                    for v in T.unroll(width):
                        sums[at + v] = combine(sums, at + v, product.sums)
                    for v in T.vectorized(width):
                        y[row, column + v] = convert(sums[at + v])

                each(width, body)

            source = T.meta_var(Source(choose(matrices), column_tile * product.columns, hidden, tx))
            product.multiply(u, source, n, row_tile, finish)

        launches.expand(buffers, dequantized, n, launch)

    # Parsing happens at definition: only the signature asked for is defined.
    if swiglu:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
            dequantized: T.Buffer((2 * hidden, dim), weights.arithmetic),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
            y = T.match_buffer(y_handle, (n, hidden), weights.arithmetic)
            compute(
                u,
                [fc1, fc3],
                lambda matrices: either(lambda which: which == 0, matrices[0], matrices[1]),
                lambda sums, i, second: silu(sums[i]) * sums[second + i],
                y,
                dequantized,
                n,
            )

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
            dequantized: T.Buffer((hidden, dim), weights.arithmetic),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
            y = T.match_buffer(y_handle, (n, hidden), weights.arithmetic)
            compute(u, [fc1], lambda matrices: matrices[0], lambda sums, i, _: silu(sums[i]), y, dequantized, n)

    return launches.sign(kernel)
