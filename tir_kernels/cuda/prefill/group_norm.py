"""Group RMS norm (specification 2.4) and group layer norm (2.8) in front of GEMMs.

A block normalizes a group of a row. Values stay in registers between the sums and the result.
"""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_sum
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import GroupNorm

THREADS = 256


def rms_norm(norm: GroupNorm, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D] fp32, weight [D] fp32 if affine) → y [n, D] of `dtype`."""
    return _group_norm(norm, False, dtype)


def layer_norm(norm: GroupNorm, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D] fp32, weight [D], bias [D] fp32 if affine) → y [n, D] of `dtype`."""
    return _group_norm(norm, True, dtype)


@functools.cache
def _group_norm(norm: GroupNorm, centred: bool, dtype: str) -> tirx.PrimFunc:
    dim, groups = norm.dim, norm.groups
    size = dim // groups
    # 16 bytes of the result at a time, or less where that does not divide.
    width = math.gcd(size, 4 if dtype == "float32" else 8)
    part = math.gcd(width, 4)
    vectors = size // width
    threads = min(THREADS, -(-vectors // 32) * 32)
    warps = threads // 32
    rounds = -(-vectors // threads)
    convert = narrow(dtype)

    @T.inline
    def sum_block(value, scratch, tx):
        """value[0] of all threads, in every thread; `scratch` [warps] is used once."""
        value[0] = warp_sum(value[0])
        if warps > 1:
            if tx % 32 == 0:
                scratch[tx // 32] = value[0]
            T.tvm_storage_sync("shared")
            value[0] = T.float32(0)
            for warp in T.unroll(warps):
                value[0] = value[0] + scratch[warp]

    def gain(weight: Any, k: Expr) -> Expr:
        return f32(1.0) + weight[k] if norm.affine else f32(1.0)

    def shift(bias: Any, k: Expr) -> Expr:
        return bias[k] if norm.affine and centred else f32(0.0)

    @kernel(weight=norm.affine, bias=norm.affine and centred)
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        y = T.match_buffer(y_handle, (n, dim), dtype)
        row = T.launch_thread("blockIdx.x", n)
        group = T.launch_thread("blockIdx.y", groups)
        tx = T.launch_thread("threadIdx.x", threads)
        values = T.alloc_buffer((rounds * width,), scope="local")
        narrowed = T.alloc_buffer((width,), dtype, scope="local")
        total = T.alloc_buffer((1,), scope="local")
        mean = T.alloc_buffer((1,), scope="local")
        scratch = T.alloc_buffer((2 * warps,), scope="shared")
        sums = T.decl_buffer((warps,), data=scratch.data, scope="shared")
        squares = T.decl_buffer((warps,), data=scratch.data, elem_offset=warps, scope="shared")
        mean[0] = T.float32(0)
        for r in T.unroll(rounds):
            if r * threads + tx < vectors:
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        values[r * width + k * part + v] = x[
                            row, group * size + (r * threads + tx) * width + k * part + v
                        ]
        if centred:
            total[0] = T.float32(0)
            for r in T.unroll(rounds):
                if r * threads + tx < vectors:
                    for v in T.unroll(width):
                        total[0] = total[0] + values[r * width + v]
            sum_block(total, sums, tx)
            mean[0] = total[0] / T.float32(size)
        total[0] = T.float32(0)
        for r in T.unroll(rounds):
            if r * threads + tx < vectors:
                for v in T.unroll(width):
                    values[r * width + v] = values[r * width + v] - mean[0]
                    total[0] = total[0] + values[r * width + v] * values[r * width + v]
        sum_block(total, squares, tx)
        total[0] = T.float32(1) / T.sqrt(total[0] / T.float32(size) + T.float32(norm.eps))
        for r in T.unroll(rounds):
            if r * threads + tx < vectors:
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        values[r * width + k * part + v] = values[r * width + k * part + v] * total[0] * gain(
                            weight, group * size + (r * threads + tx) * width + k * part + v
                        ) + shift(bias, group * size + (r * threads + tx) * width + k * part + v)
                for v in T.unroll(width):
                    narrowed[v] = convert(values[r * width + v])
                for v in T.vectorized(width):
                    y[row, group * size + (r * threads + tx) * width + v] = narrowed[v]

    return compute
