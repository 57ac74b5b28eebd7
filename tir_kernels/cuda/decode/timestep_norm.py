"""Timestep decay norm (specification 2.2, in the bias-corrected form of 8a) of one token, for CUDA: a warp a group."""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.decayed_average import average_weight, token_count
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import launch_dependents, wait_for_predecessor, warp_sum
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import TimestepNorm

# Values of a group that a lane keeps: those of groups of the usual sizes.
HELD = 4


@T.inline
def load_average(average, group, slot, position, norm, mean, var):
    """average[0, 1] = the past mean and variance of a group, average[2, 3] = the newest token's weights in them."""
    average[0] = mean[slot, group]
    average[1] = var[slot, group]
    average[2] = average_weight(token_count(position, slot, norm.chunk_size, 1), norm.betas[0])
    average[3] = average_weight(token_count(position, slot, norm.chunk_size, 1), norm.betas[1])


@T.inline
def update_moments(moments, x, row, group, size, lane, average, eps):
    """moments[0], [1] = mean and variance of a group of one token, joined with the `average` of `load_average`;
    [2] = 1/√(variance + ε). Every lane of a warp has the same."""
    held = T.alloc_buffer((HELD,), scope="local")
    # All loads at once: nothing of them waits for the sums.
    for k in T.unroll(HELD):
        held[k] = T.float32(0)
        if k * 32 + lane < size:
            held[k] = x[row, group * size + k * 32 + lane]
    moments[0] = T.float32(0)
    for k in T.unroll(HELD):
        moments[0] = moments[0] + held[k]
    if size > HELD * 32:
        for k in T.serial(HELD, (size + 31) // 32):
            if k * 32 + lane < size:
                moments[0] = moments[0] + x[row, group * size + k * 32 + lane]
    moments[0] = warp_sum(moments[0]) / T.float32(size)
    moments[1] = T.float32(0)
    for k in T.unroll(HELD):
        if k * 32 + lane < size:
            moments[1] = moments[1] + (held[k] - moments[0]) * (held[k] - moments[0])
    if size > HELD * 32:
        for k in T.serial(HELD, (size + 31) // 32):
            if k * 32 + lane < size:
                moments[1] = moments[1] + (x[row, group * size + k * 32 + lane] - moments[0]) * (
                    x[row, group * size + k * 32 + lane] - moments[0]
                )
    moments[1] = warp_sum(moments[1]) / T.float32(size)
    for k in T.unroll(2):
        moments[k] = average[k] + average[2 + k] * (moments[k] - average[k])
    moments[2] = T.float32(1) / T.sqrt(moments[1] + T.float32(eps))


@functools.cache
def timestep_norm(norm: TimestepNorm) -> tirx.PrimFunc:
    """Kernel (x [b, D], weight [D], bias [D], slots [b], position, mean [S, G], var [S, G]) → y [b, D].

    One token for each of b slots, all fp32; `mean` and `var` of the slots are updated in place.
    """
    dim, groups, slots = norm.dim, norm.groups, norm.slots
    size = dim // groups

    @kernel
    def normalize(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        mean: T.Buffer((slots, groups), "float32"),
        var: T.Buffer((slots, groups), "float32"),
        y_handle: T.handle,
    ):
        b = T.int32()
        x = T.match_buffer(x_handle, (b, dim), "float32")
        y = T.match_buffer(y_handle, (b, dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        group = T.launch_thread("blockIdx.x", groups)
        row = T.launch_thread("blockIdx.y", b)
        lane = T.launch_thread("threadIdx.x", 32)
        average = T.alloc_buffer((4,), scope="local")
        moments = T.alloc_buffer((3,), scope="local")
        launch_dependents()
        # The host names the slots, before any launch.
        slot: T.let = slot_ids[row]
        load_average(average, group, slot, position, norm, mean, var)
        wait_for_predecessor()
        update_moments(moments, x, row, group, size, lane, average, norm.eps)
        T.tvm_storage_sync("shared")
        if lane == 0:
            mean[slot, group] = moments[0]
            var[slot, group] = moments[1]
        for k in T.serial((size + 31) // 32):
            if k * 32 + lane < size:
                y[row, group * size + k * 32 + lane] = (x[row, group * size + k * 32 + lane] - moments[0]) * moments[
                    2
                ] * (T.float32(1) + weight[group * size + k * 32 + lane]) + bias[group * size + k * 32 + lane]

    return normalize
