"""Matrix products of prefill with their epilogues, for CUDA: x [n, K] times a weight [O, K] transposed.

A block computes a tile of rows and columns. On the tensor cores its operands arrive a few steps ahead by
asynchronous copies; fp32, and rows that are no multiple of 16 bytes, go through plain multiplications.
"""

import functools
import math
from typing import Any

from gecko_mlc.tir_kernels.cuda.activation import silu
from gecko_mlc.tir_kernels.cuda.intrinsics import copy_16_if, select_address
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.cuda.tensor_cores import DEPTH, swizzled
from gecko_mlc.tir_kernels.cuda.tile_products import PLAIN, PLAIN_DEPTH, PLAIN_TILE, Tile, accumulate, pipeline
from gecko_mlc.tir_kernels.machine import CUDA, divide
from tvm import tirx
from tvm.script import tirx as T

Expr = Any


def _tile(features: int, dtype: str, machine: CUDA, wide: bool = False) -> Tile:
    """The largest tile that fits; `Tile.stages` is 1 for plain multiplications. Wide ones multiply faster, and end
    slower: they pay where many inputs, or two weights, are summed for an output."""
    if dtype == "float32" or features % 8:
        return PLAIN
    if machine.shared_memory >= 192 * 1024:
        return Tile(128, 256, stages=4, pending=1) if wide else Tile(256, 128, stages=4, pending=1)
    if machine.shared_memory >= 144 * 1024:
        return Tile(256, 128, stages=3)
    return Tile(128, 128, stages=3)


def _product(features: int, dtype: str, tile: Tile, weights: int = 1):  # type: ignore[no-untyped-def]
    """An inline (x, address, value, n, row_tile, first, end, tx, finish).

    Rows of x times the rows `first` to `end` of `weights` weights, which `address` and `value` give at (which, row, k).
    At the end `finish(each)` is expanded: there `each(width, body)` expands body(row, column, sums, at) for all pairs
    of neighbouring columns (`width` 2; or for single ones). sums[at + v] belongs to column + v, of the first weight.
    """
    return (
        _plain_product(features, weights) if tile.stages == 1 else _tensor_core_product(features, dtype, tile, weights)
    )


def _tensor_core_product(features: int, dtype: str, tile: Tile, weights: int):  # type: ignore[no-untyped-def]
    steps = divide(features, DEPTH)
    left, right = tile.rows * DEPTH, tile.columns * DEPTH
    sums_count, own_columns = tile.columns // 2, tile.columns // weights
    copies = tile.columns * 8 // tile.threads
    start, multiply = pipeline(dtype, tile, False)

    @T.inline
    def product(x, address, value, n, row_tile, first, end, tx, finish):
        tiles = T.alloc_buffer((tile.stages * (left + right),), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((sums_count,), scope="local")

        @T.inline
        def load(stage, step):
            k: T.let = step * DEPTH + tx % 8 * 8
            # What lies outside is read as zeros, from an address that exists.
            inside: T.let = T.min(k, features - 8)
            for i in T.unroll(tile.rows * 8 // tile.threads):
                row: T.let = tx // 8 + i * (tile.threads // 8)
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + swizzled(row, tx % 8)]),
                    T.address_of(x[T.min(row_tile * tile.rows + row, n - 1), inside]),
                    T.Cast("int32", row_tile * tile.rows + row < n and k < features),
                )
            for i in T.unroll(copies):
                row: T.let = tx // 8 + i * (tile.threads // 8)
                column: T.let = first + row % own_columns
                copy_16_if(
                    T.address_of(tiles[stage * (left + right) + left + swizzled(row, tx % 8)]),
                    address(i * weights // copies, T.min(column, end - 1), inside),
                    T.Cast("int32", column < end and k < features),
                )

        @T.inline
        def each(width, body):
            for j in T.unroll(own_columns // 8):
                for i in T.unroll(2):
                    row: T.let = row_tile * tile.rows + tx // 32 * 16 + tx % 32 // 4 + i * 8
                    column: T.let = first + j * 8 + tx % 4 * 2
                    for p in T.unroll(2 // width):
                        if row < n and column + p < end:
                            body(row, column + p, sums, j * 4 + i * 2 + p)

        for i in T.unroll(sums_count):
            sums[i] = T.float32(0)
        start(load, steps)
        multiply(
            sums,
            lambda step: T.address_of(tiles[step % tile.stages * (left + right) + tx // 128 * 64 * DEPTH]),
            lambda step: T.address_of(tiles[step % tile.stages * (left + right) + left]),
            load,
            0,
            steps,
            steps,
        )
        finish(each)

    return product


def _plain_product(features: int, weights: int):  # type: ignore[no-untyped-def]
    add = accumulate(weights)

    @T.inline
    def product(x, address, value, n, row_tile, first, end, tx, finish):
        left = T.alloc_buffer((PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        right = T.alloc_buffer((weights, PLAIN_DEPTH, PLAIN_TILE + 1), scope="shared")
        sums = T.alloc_buffer((weights * 16,), scope="local")

        @T.inline
        def each(width, body):
            for i in T.unroll(4):
                for j in T.unroll(4 // width):
                    row: T.let = row_tile * PLAIN_TILE + tx // 16 * 4 + i
                    column: T.let = first + tx % 16 * 4 + j * width
                    if row < n and column < end:
                        body(row, column, sums, i * 4 + j * width)

        for i in T.unroll(weights * 16):
            sums[i] = T.float32(0)
        add(
            left,
            right,
            sums,
            lambda line, k: T.if_then_else(
                row_tile * PLAIN_TILE + line < n, T.Cast("float32", x[row_tile * PLAIN_TILE + line, k]), T.float32(0)
            ),
            lambda w, line, k: T.if_then_else(
                first + line < end, T.Cast("float32", value(w, first + line, k)), T.float32(0)
            ),
            features,
            tx,
        )
        finish(each)

    return product


@functools.cache
def linear(in_features: int, out_features: int, dtype: str, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (x [n, K] of `dtype`, weight [O, K] of `dtype`) → y [n, O] fp32."""
    tile = _tile(in_features, dtype, machine)
    product, width = _product(in_features, dtype, tile), math.gcd(out_features, 2)

    @T.prim_func(s_tir=True, private=True)
    def kernel(x_handle: T.handle, weight: T.Buffer((out_features, in_features), dtype), y_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        x = T.match_buffer(x_handle, (n, in_features), dtype)
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

        product(
            x,
            lambda _, o, k: T.address_of(weight[o, k]),
            lambda _, o, k: weight[o, k],
            n,
            row_tile,
            column_tile * tile.columns,
            out_features,
            tx,
            finish,
        )

    return kernel


@functools.cache
def linear_residual(in_features: int, out_features: int, dtype: str, scaled: bool, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (x [n, K] of `dtype`, weight [O, K] of `dtype`, scale [O] fp32 if scaled, residual [n, O] fp32)
    → residual + scale ⊙ product, [n, O] fp32."""
    tile = _tile(in_features, dtype, machine, wide=True)
    product, width = _product(in_features, dtype, tile), math.gcd(out_features, 2)

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

        product(
            x,
            lambda _, o, k: T.address_of(weight[o, k]),
            lambda _, o, k: weight[o, k],
            n,
            row_tile,
            column_tile * tile.columns,
            out_features,
            tx,
            finish,
        )

    # Parsing happens at definition: only the signature asked for is defined.
    if scaled:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer((out_features, in_features), dtype),
            scale: T.Buffer((out_features,), "float32"),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), dtype)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: scale[o], residual, y, n)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer((out_features, in_features), dtype),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, in_features), dtype)
            residual = T.match_buffer(residual_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            compute(x, weight, lambda o: T.float32(1), residual, y, n)

    return kernel


@functools.cache
def value_projection(
    in_features: int, value_dim: int, slots: int, chunk_size: int, dtype: str, cache_dtype: str, machine: CUDA
) -> tirx.PrimFunc:
    """Kernel (u [n, D] of `dtype`, weight [E, D] of `dtype`, bias [E], slots [1], position, values [S, 2, C, E]).

    Values silu(W u + b) (2.4) of tokens that stay within a chunk, into the slot's rows of `values`, of `cache_dtype`.
    """
    tile = _tile(in_features, dtype, machine)
    product, width = _product(in_features, dtype, tile), math.gcd(value_dim, 2)
    convert = narrow(cache_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        u_handle: T.handle,
        weight: T.Buffer((value_dim, in_features), dtype),
        bias: T.Buffer((value_dim,), "float32"),
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        values: T.Buffer((slots, 2, chunk_size, value_dim), cache_dtype),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        u = T.match_buffer(u_handle, (n, in_features), dtype)
        column_tile = T.launch_thread("blockIdx.y", divide(value_dim, tile.columns))
        row_tile = T.launch_thread("blockIdx.x", (n + tile.rows - 1) // tile.rows)
        tx = T.launch_thread("threadIdx.x", tile.threads)
        place = T.alloc_buffer((3,), "int32", scope="local")
        place[0] = slot_ids[0]
        place[1] = position[place[0], 0] % 2
        place[2] = position[place[0], 1]

        @T.inline
        def finish(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.unroll(width):
                    sums[at + v] = silu(sums[at + v] + bias[column + v])
                for v in T.vectorized(width):
                    values[place[0], place[1], place[2] + row, column + v] = convert(sums[at + v])

            each(width, body)

        product(
            u,
            lambda _, o, k: T.address_of(weight[o, k]),
            lambda _, o, k: weight[o, k],
            n,
            row_tile,
            column_tile * tile.columns,
            value_dim,
            tx,
            finish,
        )

    return kernel


@functools.cache
def projections(dim: int, z_dim: int, value_dim: int, dtype: str, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (mx [n, D] of `dtype`, wz [Z, D], its bias [Z], wr [E, D], bias [E], wh1 [D, D], bias [D], x [n, D])
    → z = wz mx + b [n, Z] fp32, r = silu(wr mx + b) [n, E] of `dtype`, h = x + wh1 mx + b [n, D] fp32 (2.4, 2.8)."""
    tile = _tile(dim, dtype, machine)
    product, convert = _product(dim, dtype, tile), narrow(dtype)
    first_r = divide(z_dim, tile.columns)
    first_h = first_r + divide(value_dim, tile.columns)
    column_tiles = first_h + divide(dim, tile.columns)
    width_z, width_r, width_h = (math.gcd(features, 2) for features in (z_dim, value_dim, dim))

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        mx_handle: T.handle,
        wz: T.Buffer((z_dim, dim), dtype),
        z_bias: T.Buffer((z_dim,), "float32"),
        wr: T.Buffer((value_dim, dim), dtype),
        r_bias: T.Buffer((value_dim,), "float32"),
        wh1: T.Buffer((dim, dim), dtype),
        h_bias: T.Buffer((dim,), "float32"),
        x_handle: T.handle,
        z_handle: T.handle,
        r_handle: T.handle,
        h_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        mx = T.match_buffer(mx_handle, (n, dim), dtype)
        x = T.match_buffer(x_handle, (n, dim), "float32")
        z = T.match_buffer(z_handle, (n, z_dim), "float32")
        r = T.match_buffer(r_handle, (n, value_dim), dtype)
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
            lambda _, o, k: select_address(
                column_tile < first_r,
                T.address_of(wz[o, k]),
                select_address(column_tile < first_h, T.address_of(wr[o, k]), T.address_of(wh1[o, k])),
            ),
            lambda _, o, k: T.if_then_else(
                column_tile < first_r, wz[o, k], T.if_then_else(column_tile < first_h, wr[o, k], wh1[o, k])
            ),
            n,
            row_tile,
            span[0],
            span[1],
            tx,
            finish,
        )

    return kernel


@functools.cache
def gate(dim: int, hidden: int, swiglu: bool, dtype: str, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (u [n, D] of `dtype`, fc1 [F, D], fc3 [F, D] if swiglu) → silu(fc1 u) ⊙ fc3 u [n, F] of `dtype` (2.8)."""
    tile = _tile(dim, dtype, machine, wide=True)
    weights = 1 + swiglu
    product, convert = _product(dim, dtype, tile, weights), narrow(dtype)
    # A tile of two weights has half of its columns from each; plain ones are computed twice.
    columns = tile.columns // weights if tile.stages > 1 else tile.columns
    second = tile.columns // 4 if tile.stages > 1 else 16
    width = math.gcd(hidden, 2)

    @T.inline
    def compute(u, address, value, combine, y, n):
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

        product(u, address, value, n, row_tile, column_tile * columns, hidden, tx, finish)

    # Parsing happens at definition: only the signature asked for is defined.
    if swiglu:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            fc1: T.Buffer((hidden, dim), dtype),
            fc3: T.Buffer((hidden, dim), dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), dtype)
            y = T.match_buffer(y_handle, (n, hidden), dtype)
            compute(
                u,
                lambda w, o, k: select_address(w == 0, T.address_of(fc1[o, k]), T.address_of(fc3[o, k])),
                lambda w, o, k: T.if_then_else(w == 0, fc1[o, k], fc3[o, k]),
                lambda sums, i: silu(sums[i]) * sums[second + i],
                y,
                n,
            )

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(u_handle: T.handle, fc1: T.Buffer((hidden, dim), dtype), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            u = T.match_buffer(u_handle, (n, dim), dtype)
            y = T.match_buffer(y_handle, (n, hidden), dtype)
            compute(
                u,
                lambda _, o, k: T.address_of(fc1[o, k]),
                lambda _, o, k: fc1[o, k],
                lambda sums, i: silu(sums[i]),
                y,
                n,
            )

    return kernel
