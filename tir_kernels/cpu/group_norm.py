"""Group RMS norm (specification 2.4) and group layer norm (2.8), a row at a time."""

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import GroupNorm


@functools.cache
def rms_norm(norm: GroupNorm, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D] if affine) → y [n, D], all fp32."""
    return _group_norm(norm, False, hardware)


@functools.cache
def layer_norm(norm: GroupNorm, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D] if affine) → y [n, D], all fp32."""
    return _group_norm(norm, True, hardware)


def _group_norm(norm: GroupNorm, centred: bool, hardware: CPU) -> tirx.PrimFunc:
    dim, size = norm.dim, norm.dim // norm.groups
    width = hardware.width(size)
    shifted = norm.affine and centred

    def gain(weight: Any, k: Expr) -> Expr:
        return f32(1.0) + weight[k] if norm.affine else f32(1.0)

    def shift(bias: Any, k: Expr) -> Expr:
        return bias[k] if shifted else f32(0.0)

    @kernel(weight=norm.affine, bias=shifted)
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        y = T.match_buffer(y_handle, (n, dim), "float32")
        for i in T.parallel(n):
            for g in T.serial(norm.groups):
                lanes = T.alloc_buffer((1, width))
                mean = T.alloc_buffer((1,))
                scale = T.alloc_buffer((1,))
                mean[0] = T.float32(0)
                if centred:
                    clear(lanes, 1, width)
                    for k in T.serial(size // width):
                        for lane in T.vectorized(width):
                            lanes[0, lane] = lanes[0, lane] + x[i, g * size + k * width + lane]
                    sum_lanes(mean, lanes, 1, width)
                    mean[0] = mean[0] / T.float32(size)
                clear(lanes, 1, width)
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        lanes[0, lane] = lanes[0, lane] + (x[i, g * size + k * width + lane] - mean[0]) * (
                            x[i, g * size + k * width + lane] - mean[0]
                        )
                sum_lanes(scale, lanes, 1, width)
                scale[0] = T.float32(1) / T.sqrt(scale[0] / T.float32(size) + T.float32(norm.eps))
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        y[i, g * size + k * width + lane] = (x[i, g * size + k * width + lane] - mean[0]) * scale[
                            0
                        ] * gain(weight, g * size + k * width + lane) + shift(bias, g * size + k * width + lane)

    return compute
