"""The projections of attention in prefill (specification 2.4, 2.8): of u the values, of mx the z, the r and the h.

Kernels have a last parameter for themselves, `dequantized`: see `gemm_launches`.
"""

import functools
import itertools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.gemm import Gemm
from gecko_mlc.tir_kernels.cuda.gemm.launches import gemm_launches
from gecko_mlc.tir_kernels.cuda.gemm.operands import WeightOperand, select_view
from gecko_mlc.tir_kernels.cuda.ptx.activation import silu
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window


@functools.cache
def value_projection(dim: int, window: Window, weights: WeightFormat, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (u [n, D], weight [E, D], bias [E], slots [1], position, values [S, 2, C, E]).

    Values silu(W u + b) (2.4) of tokens that stay within a chunk, into the slot's rows of `values`. Codes of int8 have
    to wait for all of a head: then it is (u, weight, bias) → values [n, E] of the arithmetic dtype.
    """
    value_dim = window.value_dim
    launches = gemm_launches(dim, (value_dim,), weights, hardware)
    width = math.gcd(value_dim, 2)
    dtype = weights.arithmetic if window.scaled else window.value_dtype
    convert = narrow(dtype)

    def values_shape(n: Expr) -> tuple[Expr, ...]:
        return (n, value_dim) if window.scaled else window.values

    @kernel(slot_ids=not window.scaled, position=not window.scaled, dequantized=launches.dequantize)
    def compute(
        u_handle: T.handle,
        weight: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
        bias: T.Buffer((value_dim,), "float32"),
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        values_handle: T.handle,
        dequantized: T.Buffer((value_dim, dim), weights.arithmetic),
    ):
        n = T.int32()
        u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
        values = T.match_buffer(values_handle, values_shape(n), dtype)

        @T.inline
        def launch(gemm, views):
            column_tile = T.launch_thread("blockIdx.y", divide(value_dim, gemm.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, gemm.tile.rows))
            tx = T.launch_thread("threadIdx.x", gemm.tile.threads)
            # Slot, parity of the chunk and offset of the first token.
            place = T.alloc_buffer((3,), "int32", scope="local")
            if not window.scaled:
                place[0] = slot_ids[0]
                place[1] = position[place[0], 0] % 2
                place[2] = position[place[0], 1]

            @T.inline
            def epilogue(each):
                @T.inline
                def body(row, column, sums, at):
                    for v in T.unroll(width):
                        sums[at + v] = silu(sums[at + v] + bias[column + v])
                    for v in T.vectorized(width):
                        if window.scaled:
                            values[row, column + v] = convert(sums[at + v])
                        else:
                            values[place[0], place[1], place[2] + row, column + v] = convert(sums[at + v])

                each(width, body)

            operand = T.meta_var(WeightOperand(views[0], column_tile * gemm.columns, value_dim, tx))
            gemm.run(u, operand, n, row_tile, epilogue)

        launches.expand([weight], dequantized, n, launch)

    return compute


@functools.cache
def projections(dim: int, window: Window, weights: WeightFormat, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (mx [n, D], wz [Z, D], its bias [Z], wr [E, D], bias [E], wh1 [D, D], bias [D], x [n, D])
    → z = wz mx + b [n, Z] fp32, r = silu(wr mx + b) [n, E], h = x + wh1 mx + b [n, D] fp32 (2.4, 2.8)."""
    z_dim, value_dim = window.z_dim, window.value_dim
    outputs = (z_dim, value_dim, dim)
    launches = gemm_launches(dim, outputs, weights, hardware)
    convert = narrow(weights.arithmetic)
    width_z, width_r, width_h = (math.gcd(features, 2) for features in outputs)

    def first_tiles(gemm: Gemm) -> list[int]:
        """The first tile of columns of z, of r and of h, and the end."""
        return list(itertools.accumulate((divide(features, gemm.columns) for features in outputs), initial=0))

    @kernel(dequantized=launches.dequantize)
    def compute(
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
        n = T.int32()
        mx = T.match_buffer(mx_handle, (n, dim), weights.arithmetic)
        x = T.match_buffer(x_handle, (n, dim), "float32")
        z = T.match_buffer(z_handle, (n, z_dim), "float32")
        r = T.match_buffer(r_handle, (n, value_dim), weights.arithmetic)
        h = T.match_buffer(h_handle, (n, dim), "float32")

        @T.inline
        def launch(gemm, views):
            _, first_r, first_h, end = T.meta_var(first_tiles(gemm))
            column_tile = T.launch_thread("blockIdx.y", end)
            row_tile = T.launch_thread("blockIdx.x", divide(n, gemm.tile.rows))
            tx = T.launch_thread("threadIdx.x", gemm.tile.threads)
            # The columns of the block's weight: first and end.
            span = T.alloc_buffer((2,), "int32", scope="local")
            if column_tile < first_r:
                span[0] = column_tile * gemm.columns
                span[1] = z_dim
            else:
                if column_tile < first_h:
                    span[0] = (column_tile - first_r) * gemm.columns
                    span[1] = value_dim
                else:
                    span[0] = (column_tile - first_h) * gemm.columns
                    span[1] = dim

            @T.inline
            def epilogue(each):
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

            r_or_h = T.meta_var(select_view(lambda _: column_tile < first_h, views[1], views[2]))
            view = T.meta_var(select_view(lambda _: column_tile < first_r, views[0], r_or_h))
            gemm.run(mx, WeightOperand(view, span[0], span[1], tx), n, row_tile, epilogue)

        launches.expand([wz, wr, wh1], dequantized, n, launch)

    return compute
