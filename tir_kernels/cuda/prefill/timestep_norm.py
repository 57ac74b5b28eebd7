"""Timestep decay norm (specification 2.2, in the bias-corrected form of 8a) in prefill.

A block goes through all tokens of a group: with r the average before the first of them, the average after token t is

    r + w_t · Σ_{i ≤ t} β^(t−i) · (μ_i − r),    w_t = (1 − β) / (1 − β^count),

a scan with a constant decay, which starts from 0 and keeps a constant input exactly.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.decayed_average import average_weight, token_count
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function, lane_sum
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import f32
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import TimestepNorm

# (value, 1 − β^d at a distance d of 1, 2, 4, 8, 16 lanes): the inclusive decayed sums of a warp.
_decayed_sums = device_function(
    "gecko_decayed_sums",
    """
__device__ __forceinline__ float gecko_decayed_sums(float value, float lost_1, float lost_2, float lost_4,
                                                    float lost_8, float lost_16) {
  const float lost[5] = {lost_1, lost_2, lost_4, lost_8, lost_16};
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    float before = __shfl_up_sync(0xffffffffu, value, 1 << k);
    if (threadIdx.x % 32 >= 1 << k) value += before - lost[k] * before;
  }
  return value;
}
""",
    "float32",
)
# (value): that of the lane before; the first keeps its own.
_lane_before = device_function(
    "gecko_lane_before",
    """
__device__ __forceinline__ float gecko_lane_before(float value) { return __shfl_up_sync(0xffffffffu, value, 1); }
""",
    "float32",
)


def timestep_norm_moments(norm: TimestepNorm) -> tirx.PrimFunc:
    """Kernel (x [n, D], slots [1], position, mean [S, G], var [S, G]) → moments [G, n, 2].

    Tokens of one slot in order, all fp32: for each the average mean and 1/√(average variance + ε) of its
    norm; `mean` and `var` of the slot are updated in place.
    """
    return _scan(norm, False)


@functools.cache
def timestep_norm(norm: TimestepNorm, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D], moments [G, n, 2]) → y [n, D] of `dtype`.

    The norm of n tokens with the moments of `timestep_norm_moments`; the inputs are fp32.
    """
    dim, size = norm.dim, norm.dim // norm.groups
    width = math.gcd(size, 4)
    convert = narrow(dtype)

    @kernel
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        moments_handle: T.handle,
        y_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        moments = T.match_buffer(moments_handle, (norm.groups, n, 2), "float32")
        y = T.match_buffer(y_handle, (n, dim), dtype)
        row = T.launch_thread("blockIdx.x", n)
        tx = T.launch_thread("threadIdx.x", 256)
        values = T.alloc_buffer((width,), scope="local")
        for k in T.serial((dim // width + 255) // 256):
            d: T.let = (k * 256 + tx) * width
            if d < dim:
                for v in T.unroll(width):
                    values[v] = (x[row, d + v] - moments[d // size, row, 0]) * moments[d // size, row, 1] * (
                        T.float32(1) + weight[d + v]
                    ) + bias[d + v]
                for v in T.vectorized(width):
                    y[row, d + v] = convert(values[v])

    return compute


def last_timestep_norm(norm: TimestepNorm) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D], slots [1], position, mean [S, G], var [S, G]) → y [1, D].

    The norm of the last of n tokens, all fp32; `mean` and `var` of the slot are updated in place.
    """
    return _scan(norm, True)


@functools.cache
def _scan(norm: TimestepNorm, last: bool) -> tirx.PrimFunc:
    """The kernel of `last_timestep_norm`, or of `timestep_norm_moments`."""
    dim, groups, chunk_size = norm.dim, norm.groups, norm.chunk_size
    size = dim // groups
    beta_mean, beta_var = norm.betas
    # Moments of a token: `lanes` with up to 4 vectors each, more in large groups; kept in registers.
    width = math.gcd(size, 4)
    vectors = size // width
    lanes = min(32, 1 << (-(-vectors // 4) - 1).bit_length())
    rounds = -(-vectors // lanes)
    sum_lanes = lane_sum(lanes)
    # Their scan: `run` successive tokens a thread, a tile at a time.
    longest = 1 << (chunk_size - 1).bit_length()
    threads = min(512, max(32, longest))
    ahead = 2 if rounds * width <= 16 else 1
    tokens_at_once = threads // lanes * ahead
    tile = max(threads, min(2048, longest))
    run = tile // threads
    warps = threads // 32

    @T.inline
    def keep(sums, m, beta, tokens):
        """sums[m] *= β^tokens, of which the small 1 − β^tokens is what has to be exact."""
        sums[m] = sums[m] - T.float32(-math.expm1(tokens * math.log(beta))) * sums[m]

    @T.inline
    def scan_warp(m, beta, before, sums, moments, warp_sums, tokens, tx):
        """sums[m] = decayed sum of all tokens of the warp before the thread's run."""
        sums[m] = T.float32(0)
        for i in T.unroll(run):
            keep(sums, m, beta, 1)
            if tx * run + i < tokens:
                sums[m] = sums[m] + (moments[m, tx * run + i] - before[m])
        sums[m] = _decayed_sums(sums[m], *[f32(-math.expm1((run << k) * math.log(beta))) for k in range(5)])
        if tx % 32 == 31:
            warp_sums[m, tx // 32] = sums[m]
        sums[m] = _lane_before(sums[m])
        if tx % 32 == 0:
            sums[m] = T.float32(0)

    @T.inline
    def add_warps(m, beta, sums, others, warp_sums, carried, tx):
        """Add to sums[m] the warps before, and the tiles before."""
        others[m] = carried[m]
        for warp in T.serial(tx // 32):
            keep(others, m, beta, 32 * run)
            others[m] = others[m] + warp_sums[m, warp]
        sums[m] = sums[m] + others[m] * T.exp(T.Cast("float32", tx % 32 * run) * T.float32(math.log(beta)))

    @T.inline
    def average(m, beta, average, before, sums, moments, i, count):
        """average[m] after one more token."""
        keep(sums, m, beta, 1)
        sums[m] = sums[m] + (moments[m, i] - before[m])
        average[m] = before[m] + sums[m] * average_weight(count, beta)

    @T.inline
    def scan(x, slot, position, mean, var, n, group, tx, finish):
        values = T.alloc_buffer((ahead, rounds * width), scope="local")
        token = T.alloc_buffer((2,), scope="local")
        before = T.alloc_buffer((2,), scope="local")
        sums = T.alloc_buffer((2,), scope="local")
        others = T.alloc_buffer((2,), scope="local")
        moments = T.alloc_buffer((2, tile), scope="shared")
        warp_sums = T.alloc_buffer((2, warps), scope="shared")
        carried = T.alloc_buffer((2,), scope="shared")
        before[0] = mean[slot, group]
        before[1] = var[slot, group]
        if tx < 2:
            carried[tx] = T.float32(0)
        for start in T.serial((n + tile - 1) // tile):
            tokens: T.let = T.min(n - start * tile, tile)
            # 1. Mean and variance of every token.
            for step in T.serial((tokens + tokens_at_once - 1) // tokens_at_once):
                for a in T.unroll(ahead):
                    for r in T.unroll(rounds):
                        for v in T.vectorized(width):
                            values[a, r * width + v] = T.float32(0)
                        if (
                            step * tokens_at_once + a * (threads // lanes) + tx // lanes < tokens
                            and r * lanes + tx % lanes < vectors
                        ):
                            for v in T.vectorized(width):
                                values[a, r * width + v] = x[
                                    start * tile + step * tokens_at_once + a * (threads // lanes) + tx // lanes,
                                    group * size + (r * lanes + tx % lanes) * width + v,
                                ]
                for a in T.unroll(ahead):
                    t: T.let = step * tokens_at_once + a * (threads // lanes) + tx // lanes
                    token[0] = T.float32(0)
                    for v in T.unroll(rounds * width):
                        token[0] = token[0] + values[a, v]
                    token[0] = sum_lanes(token[0]) / T.float32(size)
                    token[1] = T.float32(0)
                    for r in T.unroll(rounds):
                        if r * lanes + tx % lanes < vectors:
                            for v in T.unroll(width):
                                token[1] = token[1] + (values[a, r * width + v] - token[0]) * (
                                    values[a, r * width + v] - token[0]
                                )
                    token[1] = sum_lanes(token[1]) / T.float32(size)
                    if tx % lanes == 0 and t < tokens:
                        moments[0, t] = token[0]
                        moments[1, t] = token[1]
            T.tvm_storage_sync("shared")
            # 2. Decayed sums of what comes before each thread's run: in its warp, in others, in other tiles.
            scan_warp(0, beta_mean, before, sums, moments, warp_sums, tokens, tx)
            scan_warp(1, beta_var, before, sums, moments, warp_sums, tokens, tx)
            T.tvm_storage_sync("shared")
            add_warps(0, beta_mean, sums, others, warp_sums, carried, tx)
            add_warps(1, beta_var, sums, others, warp_sums, carried, tx)
            T.tvm_storage_sync("shared")
            # 3. The averages of every token.
            for i in T.unroll(run):
                if tx * run + i < tokens:
                    count: T.let = token_count(position, slot, chunk_size, start * tile + tx * run + i + 1)
                    average(0, beta_mean, token, before, sums, moments, tx * run + i, count)
                    average(1, beta_var, token, before, sums, moments, tx * run + i, count)
                    if start * tile + tx * run + i == n - 1:
                        mean[slot, group] = token[0]
                        var[slot, group] = token[1]
                    token[1] = T.float32(1) / T.sqrt(token[1] + T.float32(norm.eps))
                    finish(start * tile + tx * run + i, token)
            if tx == threads - 1:
                carried[0] = sums[0]
                carried[1] = sums[1]
            T.tvm_storage_sync("shared")

    @kernel(weight=last, bias=last, moments=not last, y=last)
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((norm.slots, 2), "int32"),
        mean: T.Buffer((norm.slots, groups), "float32"),
        var: T.Buffer((norm.slots, groups), "float32"),
        moments_handle: T.handle,
        y: T.Buffer((1, dim), "float32"),
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        moments = T.match_buffer(moments_handle, (groups, n, 2), "float32")
        group = T.launch_thread("blockIdx.x", groups)
        tx = T.launch_thread("threadIdx.x", threads)
        if last:
            final = T.alloc_buffer((2,), scope="shared")

            @T.inline
            def finish(t, token):
                if t == n - 1:
                    final[0] = token[0]
                    final[1] = token[1]

            scan(x, slot_ids[0], position, mean, var, n, group, tx, finish)
            for k in T.serial((size + threads - 1) // threads):
                if k * threads + tx < size:
                    d: T.let = group * size + k * threads + tx
                    y[0, d] = (x[n - 1, d] - final[0]) * final[1] * (T.float32(1) + weight[d]) + bias[d]
        else:

            @T.inline
            def store(t, token):
                for v in T.vectorized(2):
                    moments[group, t, v] = token[v]

            scan(x, slot_ids[0], position, mean, var, n, group, tx, store)

    return compute
