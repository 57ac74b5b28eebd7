"""Linear layers of prefill and the FFN's gate (specification 2.8), with their epilogues: x [n, K] times a weight [O, K]
transposed.

A block computes a `BlockTile`. Kernels that may dequantize weights first have a last parameter for themselves,
`dequantized`: see `gemm_launches`.
"""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.gemm import weight_gemm
from gecko_mlc.tir_kernels.cuda.gemm.launches import gemm_launches
from gecko_mlc.tir_kernels.cuda.gemm.operands import WeightOperand, WeightView, select_view, weight_viewer
from gecko_mlc.tir_kernels.cuda.ptx.activation import silu
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.kernel import kernel


@functools.cache
def linear(in_features: int, out_features: int, weights: WeightFormat, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K]) → y [n, O] fp32."""
    gemm, width = weight_gemm(in_features, weights, hardware), math.gcd(out_features, 2)
    tile, view = gemm.tile, weight_viewer(weights, in_features)

    @kernel
    def compute(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
        y_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
        y = T.match_buffer(y_handle, (n, out_features), "float32")
        column_tile = T.launch_thread("blockIdx.y", divide(out_features, tile.columns))
        row_tile = T.launch_thread("blockIdx.x", divide(n, tile.rows))
        tx = T.launch_thread("threadIdx.x", tile.threads)

        @T.inline
        def epilogue(each):
            @T.inline
            def body(row, column, sums, at):
                for v in T.vectorized(width):
                    y[row, column + v] = sums[at + v]

            each(width, body)

        operand = T.meta_var(WeightOperand(view(weight), column_tile * tile.columns, out_features, tx))
        gemm.run(x, operand, n, row_tile, epilogue)

    return compute


@functools.cache
def linear_residual(
    in_features: int, out_features: int, weights: WeightFormat, scaled: bool, hardware: CUDA
) -> tirx.PrimFunc:
    """Kernel (x [n, K] of the weights' arithmetic dtype, weight [O, K], scale [O] fp32 if scaled, residual [n, O] fp32)
    → residual + scale ⊙ product, [n, O] fp32."""
    launches = gemm_launches(in_features, (out_features,), weights, hardware, wide=True)
    width = math.gcd(out_features, 2)

    def scale_of(scale: Any, o: Expr) -> Expr:
        return scale[o] if scaled else f32(1.0)

    @kernel(scale=scaled, dequantized=launches.dequantize)
    def compute(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
        scale: T.Buffer((out_features,), "float32"),
        residual_handle: T.handle,
        y_handle: T.handle,
        dequantized: T.Buffer((out_features, in_features), weights.arithmetic),
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, in_features), weights.arithmetic)
        residual = T.match_buffer(residual_handle, (n, out_features), "float32")
        y = T.match_buffer(y_handle, (n, out_features), "float32")

        @T.inline
        def launch(gemm, views):
            column_tile = T.launch_thread("blockIdx.y", divide(out_features, gemm.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, gemm.tile.rows))
            tx = T.launch_thread("threadIdx.x", gemm.tile.threads)

            @T.inline
            def epilogue(each):
                @T.inline
                def body(row, column, sums, at):
                    for v in T.vectorized(width):
                        y[row, column + v] = residual[row, column + v] + scale_of(scale, column + v) * sums[at + v]

                each(width, body)

            operand = T.meta_var(WeightOperand(views[0], column_tile * gemm.columns, out_features, tx))
            gemm.run(x, operand, n, row_tile, epilogue)

        launches.expand([weight], dequantized, n, launch)

    return compute


@functools.cache
def gate(dim: int, hidden: int, swiglu: bool, weights: WeightFormat, hardware: CUDA) -> tirx.PrimFunc:
    """Kernel (u [n, D], fc1 [F, D], fc3 [F, D] if swiglu) → silu(fc1 u) ⊙ fc3 u [n, F] (2.8), or silu(fc1 u)."""
    count = 1 + swiglu
    launches = gemm_launches(dim, (hidden,) * count, weights, hardware, wide=True, count=count)
    width, convert = math.gcd(hidden, 2), narrow(weights.arithmetic)

    def both(views: list[WeightView]) -> WeightView:
        return select_view(lambda which: which == 0, *views) if swiglu else views[0]

    def gated(sums: Any, at: Expr, second: int) -> Expr:
        return silu(sums[at]) * sums[second + at] if swiglu else silu(sums[at])

    @kernel(fc3=swiglu, dequantized=launches.dequantize)
    def compute(
        u_handle: T.handle,
        fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
        fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
        y_handle: T.handle,
        dequantized: T.Buffer((count * hidden, dim), weights.arithmetic),
    ):
        n = T.int32()
        u = T.match_buffer(u_handle, (n, dim), weights.arithmetic)
        y = T.match_buffer(y_handle, (n, hidden), weights.arithmetic)

        @T.inline
        def launch(gemm, views):
            column_tile = T.launch_thread("blockIdx.y", divide(hidden, gemm.columns))
            row_tile = T.launch_thread("blockIdx.x", divide(n, gemm.tile.rows))
            tx = T.launch_thread("threadIdx.x", gemm.tile.threads)

            @T.inline
            def epilogue(each):
                @T.inline
                def body(row, column, sums, at):
                    for v in T.unroll(width):
                        sums[at + v] = gated(sums, at + v, gemm.accumulators)
                    for v in T.vectorized(width):
                        y[row, column + v] = convert(sums[at + v])

                each(width, body)

            operand = T.meta_var(WeightOperand(both(views), column_tile * gemm.columns, hidden, tx))
            gemm.run(u, operand, n, row_tile, epilogue)

        launches.expand([fc1, fc3][:count], dequantized, n, launch)

    return compute
