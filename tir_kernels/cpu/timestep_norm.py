"""Timestep decay norm (specification 2.2, in the bias-corrected form of 8a).

A sequence is either `length` tokens of one slot (prefill) or one token of each of several (decode).
"""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.expressions import average_weight
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import TimestepNorm


@functools.cache
def timestep_norm(phase: Phase, norm: TimestepNorm, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D], slots, position, mean [S, G], var [S, G]) → y [n, D].

    All fp32; `mean` and `var` of the named slots are updated in place.
    """
    dim, groups, slots = norm.dim, norm.groups, norm.slots
    size = dim // groups
    width = hardware.width(size)

    @kernel
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        mean: T.Buffer((slots, groups), "float32"),
        var: T.Buffer((slots, groups), "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        y = T.match_buffer(y_handle, (n, dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        # 1. The moments of every token and group, kept in the first two features of the group in y.
        for i in T.parallel(n):
            for g in T.serial(groups):
                sums = T.alloc_buffer((1, width))
                total = T.alloc_buffer((1,))
                mu = T.alloc_buffer((1,))
                clear(sums, 1, width)
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        sums[0, lane] = sums[0, lane] + x[i, g * size + k * width + lane]
                sum_lanes(total, sums, 1, width)
                mu[0] = total[0] / T.float32(size)
                clear(sums, 1, width)
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        sums[0, lane] = sums[0, lane] + (x[i, g * size + k * width + lane] - mu[0]) * (
                            x[i, g * size + k * width + lane] - mu[0]
                        )
                sum_lanes(total, sums, 1, width)
                y[i, g * size] = mu[0]
                y[i, g * size + 1] = total[0] / T.float32(size)
        # 2. Their decayed averages, token after token.
        for s in T.serial(phase.sequences(n)):
            for t in T.serial(phase.length(n)):
                weights = T.alloc_buffer((2,))
                count = T.Cast("float32", position[slot_ids[s], 0]) * T.float32(norm.chunk_size) + T.Cast(
                    "float32", position[slot_ids[s], 1] + t + 1
                )
                weights[0] = average_weight(count, norm.betas[0])
                weights[1] = average_weight(count, norm.betas[1])
                for g in T.serial(groups):
                    mean[slot_ids[s], g] = mean[slot_ids[s], g] + weights[0] * (
                        y[phase.row(s, t), g * size] - mean[slot_ids[s], g]
                    )
                    var[slot_ids[s], g] = var[slot_ids[s], g] + weights[1] * (
                        y[phase.row(s, t), g * size + 1] - var[slot_ids[s], g]
                    )
                    y[phase.row(s, t), g * size] = mean[slot_ids[s], g]
                    y[phase.row(s, t), g * size + 1] = var[slot_ids[s], g]
        # 3. The norm itself.
        for i in T.parallel(n):
            for g in T.serial(groups):
                moments = T.alloc_buffer((2,))
                moments[0] = y[i, g * size]
                moments[1] = T.float32(1) / T.sqrt(y[i, g * size + 1] + T.float32(norm.eps))
                for k in T.serial(size // width):
                    for lane in T.vectorized(width):
                        y[i, g * size + k * width + lane] = (x[i, g * size + k * width + lane] - moments[0]) * moments[
                            1
                        ] * (T.float32(1) + weight[g * size + k * width + lane]) + bias[g * size + k * width + lane]

    return compute
