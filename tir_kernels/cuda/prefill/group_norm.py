"""Group RMS norm (specification 2.4) and group layer norm (2.8) in front of matrix products, for CUDA.

A block for each row and group. Values stay in registers between the sums and the result.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_sum
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow

THREADS = 256


@functools.cache
def rms_norm(dim: int, groups: int, eps: float, affine: bool, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D] fp32, weight [D] fp32 if affine) → y [n, D] of `dtype`."""
    return _group_norm(dim, groups, eps, affine, False, dtype)


@functools.cache
def layer_norm(dim: int, groups: int, eps: float, affine: bool, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D] fp32, weight [D], bias [D] fp32 if affine) → y [n, D] of `dtype`."""
    return _group_norm(dim, groups, eps, affine, True, dtype)


def _group_norm(dim: int, groups: int, eps: float, affine: bool, centred: bool, dtype: str) -> tirx.PrimFunc:
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

    @T.inline
    def normalize(x, y, n, gain, shift):
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
        total[0] = T.float32(1) / T.sqrt(total[0] / T.float32(size) + T.float32(eps))
        for r in T.unroll(rounds):
            if r * threads + tx < vectors:
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        values[r * width + k * part + v] = values[r * width + k * part + v] * total[0] * gain(
                            group * size + (r * threads + tx) * width + k * part + v
                        ) + shift(group * size + (r * threads + tx) * width + k * part + v)
                for v in T.unroll(width):
                    narrowed[v] = convert(values[r * width + v])
                for v in T.vectorized(width):
                    y[row, group * size + (r * threads + tx) * width + v] = narrowed[v]

    def one(_):  # type: ignore[no-untyped-def]
        return tirx.const(1.0, "float32")

    def zero(_):  # type: ignore[no-untyped-def]
        return tirx.const(0.0, "float32")

    # Parsing happens at definition: only the signature asked for is defined.
    if not affine:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, dim), "float32")
            y = T.match_buffer(y_handle, (n, dim), dtype)
            normalize(x, y, n, one, zero)

    elif not centred:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, weight: T.Buffer((dim,), "float32"), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, dim), "float32")
            y = T.match_buffer(y_handle, (n, dim), dtype)
            normalize(x, y, n, lambda k: T.float32(1) + weight[k], zero)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer((dim,), "float32"),
            bias: T.Buffer((dim,), "float32"),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, dim), "float32")
            y = T.match_buffer(y_handle, (n, dim), dtype)
            normalize(x, y, n, lambda k: T.float32(1) + weight[k], lambda k: bias[k])

    return kernel
