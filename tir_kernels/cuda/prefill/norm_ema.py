"""Timestep norm (specification 2.2) and complex exponential moving average (2.3) in prefill.

Components are as parallel as channels, so a sequence needs no blocks of time: a thread keeps the states of a few
components of one channel in registers and goes through all tokens in order.
"""

import functools
import math
from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import EMA, TimestepNorm

# Tokens that a block has in shared memory at a time.
TOKENS = 64
# A component with a smaller p than this has no state.
SMALLEST_INPUT = 1e-30


def _transposed_sum(count: int) -> Callable[..., Expr]:
    """(values[count], part): the sum of values[part] over the `count` threads, a power of two, whose lanes differ in
    the upper bits. Halves the number of values in each exchange."""
    name = f"gecko_transposed_sum_{count}"
    source = f"""
__device__ __forceinline__ float {name}(float* values, int part) {{
#pragma unroll
  for (int half = {count} / 2; half > 0; half /= 2) {{
    bool upper = part & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {{
      float given = upper ? values[i] : values[i + half];
      float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, given, half * {32 // count});
    }}
  }}
  return values[0];
}}
"""
    return device_function(name, source, "float32")


@functools.cache
def norm_ema(norm: TimestepNorm, shape: EMA, dtype: str) -> tirx.PrimFunc:
    """Kernel (x [n, D], weight [D], bias [D], coefficients [5, N, D], moments [G, n, 2], slots [1], ema [S, 2, N, D])
    → u [n, D] of `dtype`, c [n, D].

    Tokens of one slot in order; `moments` are those of `timestep_norm_moments`. u is their timestep norm and
    c = u + EMA, of the u before it was rounded; all but u fp32. `ema` of the slot is updated in place.
    """
    dim, components, groups = shape.dim, shape.components, norm.groups
    size = dim // groups
    # `parts` threads of a warp share a channel: more threads are worth more than their sums cost.
    parts = 8
    while parts < 32 and components > 8 * parts:
        parts *= 2
    held = -(-components // parts)
    lanes = 32 // parts
    threads = 128
    channels = threads // parts
    # The threads of a block side by side load and normalize a tile, `width` channels each.
    width = math.gcd(size, 4)
    columns = channels // width
    passes = TOKENS * columns // threads
    rows = threads // columns
    sum_parts = _transposed_sum(parts)
    convert = narrow(dtype)

    @kernel
    def compute(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        coefficients: T.Buffer((5, components, dim), "float32"),
        moments_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        ema: T.Buffer((shape.slots, 2, components, dim), "float32"),
        u_handle: T.handle,
        c_handle: T.handle,
    ):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        moments = T.match_buffer(moments_handle, (groups, n, 2), "float32")
        u = T.match_buffer(u_handle, (n, dim), dtype)
        c = T.match_buffer(c_handle, (n, dim), "float32")
        bx = T.launch_thread("blockIdx.x", (dim + channels - 1) // channels)
        tx = T.launch_thread("threadIdx.x", threads)
        tile = T.alloc_buffer((2, TOKENS, channels), scope="shared")
        # Of the tile: the channels of a thread, as loaded.
        incoming = T.alloc_buffer((passes, width), scope="local")
        average = T.alloc_buffer((passes, 2), scope="local")
        scale = T.alloc_buffer((2, width), scope="local")
        # Of the EMA: one channel, `held` components with their state divided by p, which saves a product a token.
        p = T.alloc_buffer((held,), scope="local")
        q = T.alloc_buffer((held, 2), scope="local")
        g = T.alloc_buffer((held, 2), scope="local")
        h = T.alloc_buffer((held, 2), scope="local")
        old = T.alloc_buffer((1,), scope="local")
        sums = T.alloc_buffer((parts,), scope="local")
        d: T.let = bx * channels + tx % columns * width
        part: T.let = tx % 32 // lanes
        channel: T.let = tx // 32 * lanes + tx % lanes
        slot: T.let = slot_ids[0]

        @T.inline
        def load_tile(start):
            for k in T.unroll(passes):
                if d < dim and start + k * rows + tx // columns < n:
                    for v in T.vectorized(width):
                        incoming[k, v] = x[start + k * rows + tx // columns, d + v]
                    for v in T.vectorized(2):
                        average[k, v] = moments[d // size, start + k * rows + tx // columns, v]

        @T.inline
        def normalize_tile(start, buffer):
            for k in T.unroll(passes):
                if d < dim and start + k * rows + tx // columns < n:
                    for v in T.unroll(width):
                        incoming[k, v] = (incoming[k, v] - average[k, 0]) * average[k, 1] * scale[0, v] + scale[1, v]
                    for v in T.vectorized(width):
                        tile[buffer, k * rows + tx // columns, tx % columns * width + v] = incoming[k, v]
                    for v in T.vectorized(width):
                        u[start + k * rows + tx // columns, d + v] = convert(incoming[k, v])

        @T.inline
        def step(buffer, t, i):
            """The states after token t of the tile; sums[i] = this thread's share of its output."""
            sums[i] = T.float32(0)
            for j in T.unroll(held):
                old[0] = h[j, 0]
                h[j, 0] = q[j, 0] * old[0] + (tile[buffer, t, channel] - q[j, 1] * h[j, 1])
                h[j, 1] = q[j, 0] * h[j, 1] + q[j, 1] * old[0]
                sums[i] = sums[i] + g[j, 0] * h[j, 0]
                sums[i] = sums[i] - g[j, 1] * h[j, 1]

        for v in T.vectorized(width):
            scale[0, v] = T.float32(0)
        for v in T.vectorized(width):
            scale[1, v] = T.float32(0)
        if d < dim:
            for v in T.vectorized(width):
                scale[0, v] = T.float32(1) + weight[d + v]
            for v in T.vectorized(width):
                scale[1, v] = bias[d + v]
        load_tile(0)
        for j in T.unroll(held):
            p[j] = T.float32(0)
            for k in T.unroll(2):
                q[j, k] = T.float32(0)
                g[j, k] = T.float32(0)
                h[j, k] = T.float32(0)
            if bx * channels + channel < dim and part * held + j < components:
                p[j] = coefficients[2, part * held + j, bx * channels + channel]
                if T.abs(p[j]) < T.float32(SMALLEST_INPUT):
                    p[j] = T.float32(0)
                for k in T.unroll(2):
                    q[j, k] = coefficients[k, part * held + j, bx * channels + channel]
                    g[j, k] = coefficients[3 + k, part * held + j, bx * channels + channel] * p[j]
                if p[j] != T.float32(0):
                    for k in T.unroll(2):
                        h[j, k] = ema[slot, k, part * held + j, bx * channels + channel] / p[j]
        for block in T.serial((n + TOKENS - 1) // TOKENS):
            normalize_tile(block * TOKENS, block % 2)
            # The other buffer is free as well: threads that pass have left it.
            T.tvm_storage_sync("shared")
            load_tile((block + 1) * TOKENS)
            for batch in T.serial((T.min(n - block * TOKENS, TOKENS) + parts - 1) // parts):
                if block * TOKENS + (batch + 1) * parts <= n:
                    for i in T.unroll(parts):
                        step(block % 2, batch * parts + i, i)
                else:
                    for i in T.unroll(parts):
                        sums[i] = T.float32(0)
                        if block * TOKENS + batch * parts + i < n:
                            step(block % 2, batch * parts + i, i)
                sums[0] = sum_parts(T.address_of(sums[0]), part)
                if block * TOKENS + batch * parts + part < n and bx * channels + channel < dim:
                    c[block * TOKENS + batch * parts + part, bx * channels + channel] = (
                        sums[0] + tile[block % 2, batch * parts + part, channel]
                    )
        for j in T.unroll(held):
            if bx * channels + channel < dim and part * held + j < components:
                for k in T.unroll(2):
                    ema[slot, k, part * held + j, bx * channels + channel] = h[j, k] * p[j]

    return compute
