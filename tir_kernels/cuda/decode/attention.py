"""Sliding chunk attention of one decoded token (specification 2.6), for CUDA.

The positions that a head sees are split into parts, which `attention_merge` joins. What it needs of 2.4 and 2.5 is
made from z once more: that is less than another launch.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.decode.attention_scores import cached_scores
from gecko_mlc.tir_kernels.cuda.decode.attention_values import Thread, cached_values
from gecko_mlc.tir_kernels.cuda.decode.attention_window import (
    BLOCKS_PER_SM,
    SHORTEST,
    Part,
    part_length,
    parts,
    visible_positions,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    RESIDENT_BLOCKS,
    launch_dependents,
    wait_for_predecessor,
    warp_maximum,
    warp_sum,
)
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import MASKED, Expr, affine, f32, loader
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window
from gecko_mlc.tir_kernels.value_cache import code_of, inverse_of, scale_of


@T.inline
def _normalize(scale, z, row, first, size, eps, lane):
    """scale[0] = what z of a head is multiplied with by its norm, in every lane."""
    scale[0] = T.float32(0)
    for k in T.unroll((size + 31) // 32):
        if k * 32 + lane < size:
            scale[0] = scale[0] + z[row, first + k * 32 + lane] * z[row, first + k * 32 + lane]
    scale[0] = T.float32(1) / T.sqrt(warp_sum(scale[0]) / T.float32(size) + T.float32(eps))


@functools.cache
def attend(window: Window) -> tirx.PrimFunc:
    """Kernel (z [b, Z], v [b, E], gamma [4, Z], beta [4, Z], cos, sin [2C, dz/2], slots [b], position,
    keys [S, 2, C, Z], values [S, 2, C, E], value_scales [S, 2, C, H] of int8 values, memory_keys [S, 2, C, Z])
    → partial [b, H, P, dv], statistics [b, H, P, 2].

    Statistics of a part are the maximum of its scores and the sum of their exponentials relative to it, partial sums
    are relative to it as well; those of a part without positions are not written. The token's value, key and memory
    key are written to the caches, of `key_dtype` and `value_dtype`. All else is fp32.
    """
    z_dim, value_dim, heads, chunk_size = window.z_dim, window.value_dim, window.heads, window.chunk_size
    key_dtype, value_dtype, quantized = window.key_dtype, window.value_dtype, window.scaled
    size, half, value_size = window.head_dim, window.head_dim // 2, window.value_head_dim
    count = parts(chunk_size, heads)
    longest = max(-(-2 * chunk_size // count), SHORTEST)
    cache = cached_values(window)
    threads, groups, columns, width, vectors = cache.threads, cache.groups, cache.columns, cache.width, cache.vectors
    part_width = math.gcd(width, 4)
    scorer = cached_scores(window, threads, longest)
    pair_rounds, scale_rounds = -(-half // threads), -(-longest // threads)
    load, convert = loader(key_dtype), narrow(key_dtype)
    load_cached, narrow_value = loader(value_dtype), narrow(value_dtype)

    def convert_value(value: Expr, inverse: Expr) -> Expr:
        return code_of(value, inverse) if quantized else narrow_value(value)

    @kernel(value_scales=window.scaled)
    def attend_part(
        z_handle: T.handle,
        v_handle: T.handle,
        gamma: T.Buffer((4, z_dim), "float32"),
        beta: T.Buffer((4, z_dim), "float32"),
        cos: T.Buffer((2 * chunk_size, half), "float32"),
        sin: T.Buffer((2 * chunk_size, half), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, key_dtype),
        values: T.Buffer(window.values, value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        memory_keys: T.Buffer(window.keys, key_dtype),
        partial_handle: T.handle,
        statistics_handle: T.handle,
    ):
        b = T.int32()
        z = T.match_buffer(z_handle, (b, z_dim), "float32")
        fresh = T.match_buffer(v_handle, (b, value_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        partial = T.match_buffer(partial_handle, (b, heads, count, value_size), "float32")
        statistics = T.match_buffer(statistics_handle, (b, heads, count, 2), "float32")
        p = T.launch_thread("blockIdx.x", count)
        head = T.launch_thread("blockIdx.y", heads)
        row = T.launch_thread("blockIdx.z", b)
        tx = T.launch_thread("threadIdx.x", threads)
        # Queries for the own and for the previous chunk; the token's key as it is cached.
        query = T.alloc_buffer((2, size), scope="shared")
        own_key = T.alloc_buffer((size,), scope="shared")
        scores = T.alloc_buffer((longest,), scope="shared")
        numerators = T.alloc_buffer((longest,), scope="shared")
        # What values are multiplied by: codes by their scales too. The largest magnitude of the token's value.
        factors = T.alloc_buffer((longest,), scope="shared") if quantized else numerators
        largest = T.alloc_buffer((threads // 32,), scope="shared")
        # Of all groups but the first.
        totals = T.alloc_buffer((max(groups - 1, 1), columns * width), scope="shared")
        gains = T.alloc_buffer((pair_rounds, 2), scope="local")
        shifts = T.alloc_buffer((pair_rounds, 2), scope="local")
        scale = T.alloc_buffer((1,), scope="local")
        pair = T.alloc_buffer((2,), scope="local")
        angle = T.alloc_buffer((2,), scope="local")
        rounded = T.alloc_buffer((2,), key_dtype, scope="local")
        held_query = T.alloc_buffer((2, scorer.rounds, scorer.width), scope="local")
        held_keys = T.alloc_buffer((scorer.loads, scorer.rounds, scorer.width), key_dtype, scope="local")
        held_scales = T.alloc_buffer((scale_rounds,), scope="local")
        held_values = T.alloc_buffer((cache.held_vectors * width,), value_dtype, scope="shared.dyn")
        vector_bytes = T.alloc_buffer((4,), "uint32", scope="local")
        value = T.alloc_buffer((width,), scope="local")
        own_value = T.alloc_buffer((cache.tiles, width), scope="local")
        cached_value = T.alloc_buffer((width,), value_dtype, scope="local")
        score = T.alloc_buffer((1,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        weight = T.alloc_buffer((1,), scope="local")
        sums = T.alloc_buffer((width,), scope="local")
        lane: T.let = tx % 32
        first_feature: T.let = head * size
        column: T.let = tx % columns
        group: T.let = tx // columns

        # Vectors of fp32 take more registers than three blocks can have.
        T.attr(0, RESIDENT_BLOCKS, 2 if key_dtype == "float32" else BLOCKS_PER_SM)
        launch_dependents()
        for k in T.unroll(pair_rounds):
            if k * threads + tx < half:
                for v in T.vectorized(2):
                    gains[k, v] = gamma[0, first_feature + (k * threads + tx) * 2 + v]
                for v in T.vectorized(2):
                    shifts[k, v] = beta[0, first_feature + (k * threads + tx) * 2 + v]
        # The host names the slots, before any launch.
        slot: T.let = slot_ids[row]
        parity: T.let = position[slot, 0] % 2
        offset: T.let = position[slot, 1]
        visible: T.let = visible_positions(position[slot, 0], offset, chunk_size)
        previous: T.let = visible - offset - 1
        length: T.let = part_length(visible, count)
        first: T.let = p * length
        present: T.let = T.min(length, visible - first)
        # Those that are in the cache: the token itself is not.
        cached: T.let = T.min(length, visible - 1 - first)
        has_token: T.let = first + present == visible
        thread = T.meta_var(Thread(tx, column, group))
        part = T.meta_var(Part(slot, parity, previous, first, cached))

        @T.inline
        def load_pair(which, k):
            """pair = features of q, k or ak (0, 1, 3)."""
            for c in T.unroll(2):
                pair[c] = z[row, first_feature + (k * threads + tx) * 2 + c] * scale[0]
                if which == 0:
                    pair[c] = affine(pair[c], gains[k, c], shifts[k, c], size)
                else:
                    pair[c] = affine(
                        pair[c],
                        gamma[which, first_feature + (k * threads + tx) * 2 + c],
                        beta[which, first_feature + (k * threads + tx) * 2 + c],
                        size,
                    )

        @T.inline
        def load_angle(k, angle_row):
            angle[0] = T.float32(1)
            angle[1] = T.float32(0)
            if head < window.rope_heads:
                angle[0] = cos[angle_row, k * threads + tx]
                angle[1] = sin[angle_row, k * threads + tx]

        @T.inline
        def load_own_value():
            """own_value = the thread's vectors of the token's value, or zeros."""
            for tile in T.unroll(cache.tiles):
                for v in T.unroll(width):
                    own_value[tile, v] = T.float32(0)
                if group == 0 and tile * columns + column < vectors:
                    for k in T.unroll(width // part_width):
                        for v in T.vectorized(part_width):
                            own_value[tile, k * part_width + v] = fresh[
                                row, head * value_size + (tile * columns + column) * width + k * part_width + v
                            ]

        @T.inline
        def add_own_value(tile):
            """The token's value goes into the cache, and into the sums as it is cached."""
            weight[0] = numerators[present - 1]
            if quantized:
                score[0] = T.float32(0)
                for warp in T.unroll(threads // 32):
                    score[0] = T.max(score[0], largest[warp])
                weight[0] = weight[0] * scale_of(score[0])
                if tile == 0 and tx == 0:
                    value_scales[slot, parity, offset, head] = scale_of(score[0])
                score[0] = inverse_of(score[0])
            if group == 0 and tile * columns + column < vectors:
                for v in T.unroll(width):
                    cached_value[v] = convert_value(own_value[tile, v], score[0])
                for v in T.vectorized(width):
                    values[slot, parity, offset, head * value_size + (tile * columns + column) * width + v] = (
                        cached_value[v]
                    )
                for v in T.unroll(width):
                    sums[v] = sums[v] + weight[0] * load_cached(cached_value, v)

        # Keys and values of earlier tokens arrive while the predecessor ends.
        if present > 0:
            scorer.load(keys, held_keys, part, first_feature, tx, 0)
            for i in T.unroll(cache.early):
                cache.load(values, held_values, part, head, thread, i, 0)
            if quantized:
                for i in T.unroll(scale_rounds):
                    if i * threads + tx < cached:
                        k: T.let = first + i * threads + tx
                        held_scales[i] = value_scales[slot, part.buffer(k), part.offset(k), head]
        wait_for_predecessor()
        if present > 0:
            for i in T.unroll(cache.ring - cache.early if cache.streamed else 0):
                cache.load(values, held_values, part, head, thread, cache.early + i, 0)
            # 1. The query; in the part with the token itself its key and memory key too.
            _normalize(scale, z, row, first_feature, size, window.eps, lane)
            for k in T.unroll(pair_rounds):
                if k * threads + tx < half:
                    load_pair(0, k)
                    for chunk in T.unroll(2):
                        load_angle(k, offset + chunk * chunk_size)
                        query[chunk, (k * threads + tx) * 2] = pair[0] * angle[0] - pair[1] * angle[1]
                        query[chunk, (k * threads + tx) * 2 + 1] = pair[0] * angle[1] + pair[1] * angle[0]
                    if has_token:
                        load_pair(1, k)
                        load_angle(k, offset)
                        rounded[0] = convert(pair[0] * angle[0] - pair[1] * angle[1])
                        rounded[1] = convert(pair[0] * angle[1] + pair[1] * angle[0])
                        for v in T.vectorized(2):
                            keys[slot, parity, offset, first_feature + (k * threads + tx) * 2 + v] = rounded[v]
                        for v in T.unroll(2):
                            own_key[(k * threads + tx) * 2 + v] = load(rounded, v)
                        load_pair(3, k)
                        for v in T.unroll(2):
                            rounded[v] = convert(pair[v])
                        for v in T.vectorized(2):
                            memory_keys[slot, parity, offset, first_feature + (k * threads + tx) * 2 + v] = rounded[v]
            T.tvm_storage_sync("shared")

            # 2. Scores.
            scorer.hold(query, held_query, tx)
            scorer.compute(keys, held_keys, held_query, score, scores, part, first_feature, tx)
            if has_token and tx < 32:
                score[0] = T.float32(0)
                for k in T.unroll((size + 31) // 32):
                    if k * 32 + lane < size:
                        score[0] = score[0] + query[0, k * 32 + lane] * own_key[k * 32 + lane]
                score[0] = warp_sum(score[0])
                if lane == 0:
                    scores[present - 1] = score[0]
            if has_token:
                load_own_value()
            T.tvm_storage_sync("shared")

            # 3. Their exponentials.
            maximum[0] = f32(MASKED)
            for k in T.serial((present + 31) // 32):
                if k * 32 + lane < present:
                    maximum[0] = T.max(maximum[0], scores[k * 32 + lane])
            maximum[0] = warp_maximum(maximum[0])
            for k in T.serial((present + threads - 1) // threads):
                if k * threads + tx < present:
                    numerators[k * threads + tx] = T.exp(scores[k * threads + tx] - maximum[0])
            if quantized:
                for i in T.unroll(scale_rounds):
                    if i * threads + tx < cached:
                        factors[i * threads + tx] = numerators[i * threads + tx] * held_scales[i]
            if quantized and has_token:
                score[0] = T.float32(0)
                for tile in T.unroll(cache.tiles):
                    for v in T.unroll(width):
                        score[0] = T.max(score[0], T.abs(own_value[tile, v]))
                score[0] = warp_maximum(score[0])
                if lane == 0:
                    largest[tx // 32] = score[0]
            T.tvm_storage_sync("shared")
            if tx < 32:
                score[0] = T.float32(0)
                for k in T.serial((present + 31) // 32):
                    if k * 32 + lane < present:
                        score[0] = score[0] + numerators[k * 32 + lane]
                score[0] = warp_sum(score[0])
                if lane == 0:
                    statistics[row, head, p, 0] = maximum[0]
                    statistics[row, head, p, 1] = score[0]

            # 4. The weighted sum of values. A vector's successor is on its way as soon as it is used.
            for tile in T.unroll(cache.tiles):
                if tile > 0:
                    for i in T.unroll(cache.ring if cache.streamed else 0):
                        cache.load(values, held_values, part, head, thread, i, tile)
                for v in T.unroll(width):
                    sums[v] = T.float32(0)
                for i in T.serial((cached + groups - 1) // groups):
                    cache.read(values, held_values, vector_bytes, value, part, head, thread, i, tile)
                    weight[0] = T.if_then_else(
                        i * groups + group < cached, factors[T.min(i * groups + group, longest - 1)], T.float32(0)
                    )
                    for v in T.unroll(width):
                        sums[v] = sums[v] + weight[0] * value[v]
                    if cache.streamed:
                        cache.load(values, held_values, part, head, thread, i + cache.ring, tile)
                if has_token:
                    add_own_value(tile)
                if groups > 1:
                    if group > 0 and group < groups:
                        for v in T.unroll(width):
                            totals[group - 1, column * width + v] = sums[v]
                    T.tvm_storage_sync("shared")
                    if group == 0:
                        for g in T.unroll(groups - 1):
                            for v in T.unroll(width):
                                sums[v] = sums[v] + totals[g, column * width + v]
                if group == 0 and tile * columns + column < vectors:
                    for k in T.unroll(width // part_width):
                        for v in T.vectorized(part_width):
                            partial[row, head, p, (tile * columns + column) * width + k * part_width + v] = sums[
                                k * part_width + v
                            ]

    return attend_part
