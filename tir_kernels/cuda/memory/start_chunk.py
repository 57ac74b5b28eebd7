"""The softmaxes of the chunk that has ended, whose positions the next one absorbs."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_maximum, warp_sum
from gecko_mlc.tir_kernels.expressions import MASKED, f32, loader
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window

THREADS = 256


@functools.cache
def start_chunk(window: Window) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory_keys [S, 2, C, Z], log_mass [S, H, dz], log_sum [S, H, C]).

    Of the chunk that has ended: lnλ = ln Σ_j exp(ak_ja) of each feature, and ln Σ_a exp(ak_ja) of each position.
    """
    size, heads, chunk_size, z_dim = window.head_dim, window.heads, window.chunk_size, window.z_dim
    cache_dtype = window.key_dtype
    # For lnλ, blocks of `lanes` vectors of features and `groups` positions at a time.
    width = math.gcd(size, 4 if cache_dtype == "float32" else 8)
    lanes = 4
    groups = THREADS // lanes
    loads = min(8, divide(chunk_size, groups))
    feature_blocks = divide(z_dim, lanes * width)
    # For the others, a warp for each position and head.
    warps, rounds = THREADS // 32, divide(size, 32)
    load = loader(cache_dtype)

    @kernel
    def compute(
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, cache_dtype),
        log_mass: T.Buffer(window.log_norm, "float32"),
        log_sum: T.Buffer((window.slots, window.heads, window.chunk_size), "float32"),
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        bx = T.launch_thread("blockIdx.x", feature_blocks + divide(heads * chunk_size, warps))
        by = T.launch_thread("blockIdx.y", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        maxima = T.alloc_buffer((groups, lanes * width), scope="shared")
        totals = T.alloc_buffer((groups, lanes * width), scope="shared")
        held = T.alloc_buffer((loads, width), cache_dtype, scope="local")
        maximum = T.alloc_buffer((width,), scope="local")
        total = T.alloc_buffer((width,), scope="local")
        row = T.alloc_buffer((rounds,), scope="local")
        slot: T.let = slot_ids[by]
        parity: T.let = position[slot, 0] % 2

        @T.inline
        def for_each(vector, body):
            """body(i, j) for all positions j of the thread, whose keys are in held[i]."""
            for step in T.serial(divide(chunk_size, groups * loads)):
                for i in T.unroll(loads):
                    for v in T.vectorized(width):
                        held[i, v] = keys[
                            slot,
                            parity,
                            T.min((step * loads + i) * groups + tx // lanes, chunk_size - 1),
                            vector * width + v,
                        ]
                for i in T.unroll(loads):
                    if (step * loads + i) * groups + tx // lanes < chunk_size:
                        for v in T.unroll(width):
                            body(i, v)

        @T.inline
        def find_maximum(i, v):
            maximum[v] = T.max(maximum[v], load(held, i, v))

        @T.inline
        def add(i, v):
            total[v] = total[v] + T.exp(load(held, i, v) - maximum[v])

        if bx < feature_blocks:
            vector: T.let = T.min(bx * lanes + tx % lanes, z_dim // width - 1)
            for v in T.unroll(width):
                maximum[v] = f32(MASKED)
                total[v] = T.float32(0)
            for_each(vector, find_maximum)
            for v in T.unroll(width):
                maxima[tx // lanes, tx % lanes * width + v] = maximum[v]
            T.tvm_storage_sync("shared")
            for v in T.unroll(width):
                for group in T.serial(groups):
                    maximum[v] = T.max(maximum[v], maxima[group, tx % lanes * width + v])
            for_each(vector, add)
            for v in T.unroll(width):
                totals[tx // lanes, tx % lanes * width + v] = total[v]
            T.tvm_storage_sync("shared")
            if tx < lanes and bx * lanes + tx < z_dim // width:
                for v in T.unroll(width):
                    total[v] = T.float32(0)
                    for group in T.serial(groups):
                        total[v] = total[v] + totals[group, tx * width + v]
                    log_mass[slot, (vector * width + v) // size, (vector * width + v) % size] = maximum[v] + T.log(
                        total[v]
                    )
        else:
            task: T.let = (bx - feature_blocks) * warps + tx // 32
            head: T.let = task % heads
            j: T.let = task // heads
            if j < chunk_size:
                maximum[0] = f32(MASKED)
                total[0] = T.float32(0)
                for r in T.unroll(rounds):
                    row[r] = f32(MASKED)
                    if r * 32 + tx % 32 < size:
                        row[r] = load(keys, slot, parity, j, head * size + r * 32 + tx % 32)
                    maximum[0] = T.max(maximum[0], row[r])
                maximum[0] = warp_maximum(maximum[0])
                for r in T.unroll(rounds):
                    total[0] = total[0] + T.exp(row[r] - maximum[0])
                total[0] = warp_sum(total[0])
                if tx % 32 == 0:
                    log_sum[slot, head, j] = maximum[0] + T.log(total[0])

    return compute
