"""Group RMS norm (specification 2.4) and group layer norm (2.8), a row at a time."""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.hardware import CPU


@functools.cache
def rms_norm(dim: int, groups: int, eps: float, affine: bool, machine: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D] if affine) → y [n, D], all fp32."""
    return _group_norm(dim, groups, eps, affine, False, machine)


@functools.cache
def layer_norm(dim: int, groups: int, eps: float, affine: bool, machine: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D] if affine) → y [n, D], all fp32."""
    return _group_norm(dim, groups, eps, affine, True, machine)


def _group_norm(dim: int, groups: int, eps: float, affine: bool, centred: bool, machine: CPU) -> tirx.PrimFunc:
    size = dim // groups
    width = machine.width(size)

    @T.inline
    def normalize(x, y, n, gain, shift):
        for i in T.parallel(n):
            for g in T.serial(groups):
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
                scale[0] = T.float32(1) / T.sqrt(scale[0] / T.float32(size) + T.float32(eps))
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        y[i, g * size + k * width + lane] = (x[i, g * size + k * width + lane] - mean[0]) * scale[
                            0
                        ] * gain(g * size + k * width + lane) + shift(g * size + k * width + lane)

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
            y = T.match_buffer(y_handle, (n, dim), "float32")
            normalize(x, y, n, one, zero)

    elif not centred:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, weight: T.Buffer((dim,), "float32"), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n, dim), "float32")
            y = T.match_buffer(y_handle, (n, dim), "float32")
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
            y = T.match_buffer(y_handle, (n, dim), "float32")
            normalize(x, y, n, lambda k: T.float32(1) + weight[k], lambda k: bias[k])

    return kernel
