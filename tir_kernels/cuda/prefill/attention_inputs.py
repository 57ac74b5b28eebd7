"""Queries, keys and read weights of prefill (specification 2.4, 2.5 in the bounded form of 8b).

A warp computes those of a token and head.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_maximum, warp_sum
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import MASKED, affine, f32
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window


@functools.cache
def attention_inputs(window: Window, dtype: str) -> tirx.PrimFunc:
    """Kernel (z [n, Z], gamma [4, Z], beta [4, Z], cos, sin [2C, dz/2], slots [1], position,
    keys [S, 2, C, Z], memory_keys [S, 2, C, Z]) → queries [n, 2, Z], read weights [n, Z] of `dtype`.

    Tokens of one slot in order. Queries are rotated for the own and for the previous chunk, read weights are
    softmax(aq) per head. The tokens' rows of the caches are written. All else is fp32.
    """
    z_dim, heads, chunk_size, cache_dtype = window.z_dim, window.heads, window.chunk_size, window.key_dtype
    size, half = window.head_dim, window.head_dim // 2
    # A lane has `rounds` vectors of features: 16 bytes of 16-bit results, or less to occupy all lanes.
    width = math.gcd(size, 4 if dtype == "float32" else 8)
    while width > 2 and size // width < 32:
        width //= 2
    part, pairs = math.gcd(width, 4), width // 2
    vectors = size // width
    rounds = -(-vectors // 32)
    warps = min(heads, 8)
    to_activation, to_cache = narrow(dtype), narrow(cache_dtype)

    @kernel
    def compute(
        z_handle: T.handle,
        gamma: T.Buffer((4, z_dim), "float32"),
        beta: T.Buffer((4, z_dim), "float32"),
        cos: T.Buffer((2 * chunk_size, half), "float32"),
        sin: T.Buffer((2 * chunk_size, half), "float32"),
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, cache_dtype),
        memory_keys: T.Buffer(window.keys, cache_dtype),
        queries_handle: T.handle,
        weights_handle: T.handle,
    ):
        n = T.int32()
        z = T.match_buffer(z_handle, (n, z_dim), "float32")
        queries = T.match_buffer(queries_handle, (n, 2, z_dim), dtype)
        weights = T.match_buffer(weights_handle, (n, z_dim), dtype)
        row = T.launch_thread("blockIdx.x", n)
        block = T.launch_thread("blockIdx.y", (heads + warps - 1) // warps)
        tx = T.launch_thread("threadIdx.x", 32 * warps)
        normed = T.alloc_buffer((rounds, width), scope="local")
        scale = T.alloc_buffer((width,), scope="local")
        shift = T.alloc_buffer((width,), scope="local")
        features = T.alloc_buffer((rounds, width), scope="local")
        angle = T.alloc_buffer((2, pairs), scope="local")
        total = T.alloc_buffer((2,), scope="local")
        activation = T.alloc_buffer((width,), dtype, scope="local")
        cached = T.alloc_buffer((width,), cache_dtype, scope="local")
        lane: T.let = tx % 32
        head: T.let = block * warps + tx // 32
        first: T.let = head * size
        slot: T.let = slot_ids[0]
        parity: T.let = position[slot, 0] % 2
        offset: T.let = position[slot, 1] + row

        @T.inline
        def project(which, r):
            """features[r] = those of q, k, aq or ak (0 to 3)."""
            for k in T.unroll(width // part):
                for v in T.vectorized(part):
                    scale[k * part + v] = gamma[which, first + (r * 32 + lane) * width + k * part + v]
                for v in T.vectorized(part):
                    shift[k * part + v] = beta[which, first + (r * 32 + lane) * width + k * part + v]
            for v in T.unroll(width):
                features[r, v] = affine(normed[r, v], scale[v], shift[v], size)

        @T.inline
        def rotate(destination, convert, r, angle_row):
            """destination = features[r], rotated in the first heads."""
            if head < window.rope_heads:
                for v in T.vectorized(pairs):
                    angle[0, v] = cos[angle_row, (r * 32 + lane) * pairs + v]
                for v in T.vectorized(pairs):
                    angle[1, v] = sin[angle_row, (r * 32 + lane) * pairs + v]
                for v in T.unroll(pairs):
                    destination[2 * v] = convert(
                        features[r, 2 * v] * angle[0, v] - features[r, 2 * v + 1] * angle[1, v]
                    )
                    destination[2 * v + 1] = convert(
                        features[r, 2 * v] * angle[1, v] + features[r, 2 * v + 1] * angle[0, v]
                    )
            else:
                for v in T.unroll(width):
                    destination[v] = convert(features[r, v])

        if head < heads:
            # 1. Norm of the head.
            total[0] = T.float32(0)
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for k in T.unroll(width // part):
                        for v in T.vectorized(part):
                            normed[r, k * part + v] = z[row, first + (r * 32 + lane) * width + k * part + v]
                    for v in T.unroll(width):
                        total[0] = total[0] + normed[r, v] * normed[r, v]
            total[0] = T.float32(1) / T.sqrt(warp_sum(total[0]) / T.float32(size) + T.float32(window.eps))
            for r in T.unroll(rounds):
                for v in T.unroll(width):
                    normed[r, v] = normed[r, v] * total[0]
            # 2. Queries and keys.
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    project(0, r)
                    for chunk in T.unroll(2):
                        rotate(activation, to_activation, r, chunk * chunk_size + offset)
                        for v in T.vectorized(width):
                            queries[row, chunk, first + (r * 32 + lane) * width + v] = activation[v]
                    project(1, r)
                    rotate(cached, to_cache, r, offset)
                    for v in T.vectorized(width):
                        keys[slot, parity, offset, first + (r * 32 + lane) * width + v] = cached[v]
                    project(3, r)
                    for v in T.unroll(width):
                        cached[v] = to_cache(features[r, v])
                    for v in T.vectorized(width):
                        memory_keys[slot, parity, offset, first + (r * 32 + lane) * width + v] = cached[v]
            # 3. Softmax of aq.
            total[0] = f32(MASKED)
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    project(2, r)
                    for v in T.unroll(width):
                        total[0] = T.max(total[0], features[r, v])
            total[0] = warp_maximum(total[0])
            total[1] = T.float32(0)
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for v in T.unroll(width):
                        features[r, v] = T.exp(features[r, v] - total[0])
                        total[1] = total[1] + features[r, v]
            total[1] = T.float32(1) / warp_sum(total[1])
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for v in T.unroll(width):
                        activation[v] = to_activation(features[r, v] * total[1])
                    for v in T.vectorized(width):
                        weights[row, first + (r * 32 + lane) * width + v] = activation[v]

    return compute
