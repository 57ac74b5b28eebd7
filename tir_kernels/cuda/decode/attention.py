"""Sliding chunk attention of one decoded token (specification 2.6), for CUDA.

The positions that a head sees are split into parts, which `attention_merge` joins. What it needs of 2.4 and 2.5 is
made from z once more: that is less than another launch.
"""

import functools
import math
from typing import Any

from tvm import DataType, tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.prefill.attention_inputs import affine
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    RESIDENT_BLOCKS,
    commit_copies,
    copy_16_if,
    lane_sum,
    launch_dependents,
    load_registers,
    wait_copies,
    wait_for_predecessor,
    warp_maximum,
    warp_sum,
    widen_vector,
)
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.expressions import MASKED, f32, loader
from gecko_mlc.tir_kernels.hardware import USUAL_SHARED_BYTES
from gecko_mlc.tir_kernels.value_cache import code_of, inverse_of, scale_of, without_scales

Expr = Any

THREADS = 256
# Blocks of `attend` for a sequence: three on each of the 132 multiprocessors of the large GPUs.
RESIDENT, BLOCKS = 3, 396
# Vectors of keys, of values, that a thread has on their way at a time: of codes fewer, for three blocks to fit.
LOADS, VALUES, CODES = 8, 16, 12


def parts(chunk_size: int, heads: int) -> int:
    """Parts that a window is split into; at least 32 positions each if the window is full."""
    return max(1, min(-(-BLOCKS // heads), 2 * chunk_size // 32))


def visible_positions(chunk: Expr, offset: Expr, chunk_size: int) -> Expr:
    """Positions that a token sees: the previous chunk and then its own, up to itself."""
    return T.Select(chunk >= 1, chunk_size, 0) + offset + 1


def part_length(visible: Expr, count: int) -> Expr:
    """Positions of each of `count` parts. The last parts may have fewer, or none, as short ones do not pay."""
    return T.max((visible + count - 1) // count, LOADS)


def _in_16_bytes(dtype: str) -> int:
    return 128 // DataType(dtype).bits


def _buffer(k: Expr, previous: Expr, parity: Expr) -> Expr:
    """The chunk buffer of the window's position k, of which the previous chunk's come first."""
    return T.Select(k < previous, 1 - parity, parity)


def _offset(k: Expr, previous: Expr) -> Expr:
    """Its place in there."""
    return T.Select(k < previous, k, k - previous)


@T.inline
def _normalize(scale, z, row, first, size, eps, lane):
    """scale[0] = what z of a head is multiplied with by its norm, in every lane."""
    scale[0] = T.float32(0)
    for k in T.unroll((size + 31) // 32):
        if k * 32 + lane < size:
            scale[0] = scale[0] + z[row, first + k * 32 + lane] * z[row, first + k * 32 + lane]
    scale[0] = T.float32(1) / T.sqrt(warp_sum(scale[0]) / T.float32(size) + T.float32(eps))


@functools.cache
def attend(
    z_dim: int,
    value_dim: int,
    heads: int,
    rope_heads: int,
    slots: int,
    chunk_size: int,
    eps: float,
    key_dtype: str,
    value_dtype: str,
) -> tirx.PrimFunc:
    """Kernel (z [b, Z], v [b, E], gamma [4, Z], beta [4, Z], cos, sin [2C, dz/2], slots [b], position,
    keys [S, 2, C, Z], values [S, 2, C, E], value_scales [S, 2, C, H] of int8 values, memory_keys [S, 2, C, Z])
    → partial [b, H, P, dv], statistics [b, H, P, 2].

    Statistics of a part are the maximum of its scores and the sum of their exponentials relative to it, partial sums
    are relative to it as well; those of a part without positions are not written. The token's value, key and memory
    key are written to the caches, of `key_dtype` and `value_dtype`. All else is fp32.
    """
    size, half, value_size = z_dim // heads, z_dim // heads // 2, value_dim // heads
    count = parts(chunk_size, heads)
    longest = max(-(-2 * chunk_size // count), LOADS)
    quantized = value_dtype == "int8"
    # Scores: a team of lanes for each key.
    key_width = math.gcd(size, _in_16_bytes(key_dtype))
    team = min(32, 1 << (size // key_width - 1).bit_length())
    key_vectors = size // key_width
    key_rounds = -(-key_vectors // team)
    # Values: `groups` positions at a time, each by as many threads as it has vectors.
    width = math.gcd(value_size, _in_16_bytes(value_dtype))
    part = math.gcd(width, 4)
    vectors = value_size // width
    columns = min(vectors, THREADS)
    groups = THREADS // columns
    threads = -(-groups * columns // 32) * 32
    passes = -(-vectors // columns)
    teams = threads // team
    # Keys that a team has on their way at a time.
    key_loads = min(-(-longest // teams), LOADS // key_rounds if key_rounds < LOADS else 1)
    # Vectors of 16 bytes go through a ring in shared memory; a thread reads only what it has put there itself.
    streamed, ring = width == _in_16_bytes(value_dtype), CODES if quantized else VALUES
    # More of them would keep the memory from the predecessor's last blocks.
    early = ring // 2 if streamed else 0
    # So much of it that TVM asks for more than the usual, which the rest would exceed.
    held_vectors = max(ring * threads, USUAL_SHARED_BYTES // 16 + 1) if streamed else 1
    widen = widen_vector(value_dtype)
    pair_rounds, scale_rounds = -(-half // threads), -(-longest // threads)
    load, convert, team_sum = loader(key_dtype), narrow(key_dtype), lane_sum(team)
    load_cached, narrow_value = loader(value_dtype), narrow(value_dtype)

    def convert_value(value: Expr, inverse: Expr) -> Expr:
        return code_of(value, inverse) if quantized else narrow_value(value)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        z_handle: T.handle,
        v_handle: T.handle,
        gamma: T.Buffer((4, z_dim), "float32"),
        beta: T.Buffer((4, z_dim), "float32"),
        cos: T.Buffer((2 * chunk_size, half), "float32"),
        sin: T.Buffer((2 * chunk_size, half), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        values: T.Buffer((slots, 2, chunk_size, value_dim), value_dtype),
        value_scales: T.Buffer((slots, 2, chunk_size, heads), "float32"),
        memory_keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        partial_handle: T.handle,
        statistics_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
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
        held_query = T.alloc_buffer((2, key_rounds, key_width), scope="local")
        held_keys = T.alloc_buffer((key_loads, key_rounds, key_width), key_dtype, scope="local")
        held_scales = T.alloc_buffer((scale_rounds,), scope="local")
        held_values = T.alloc_buffer((held_vectors * width,), value_dtype, scope="shared.dyn")
        vector_bytes = T.alloc_buffer((4,), "uint32", scope="local")
        value = T.alloc_buffer((width,), scope="local")
        own_value = T.alloc_buffer((passes, width), scope="local")
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
        T.attr(0, RESIDENT_BLOCKS, 2 if key_dtype == "float32" else RESIDENT)
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

        @T.inline
        def load_keys(j0):
            """held_keys = those of a team, `teams` apart, of positions from first + j0 on."""
            for i in T.unroll(key_loads):
                if j0 + i * teams + tx // team < cached:
                    k: T.let = first + j0 + i * teams + tx // team
                    for r in T.unroll(key_rounds):
                        if r * team + tx % team < key_vectors:
                            for v in T.vectorized(key_width):
                                held_keys[i, r, v] = keys[
                                    slot,
                                    _buffer(k, previous, parity),
                                    _offset(k, previous),
                                    first_feature + (r * team + tx % team) * key_width + v,
                                ]

        @T.inline
        def load_value(i, tile):
            """The thread's vector of its i-th value into the ring; nothing of one that does not exist."""
            j: T.let = i * groups + group
            k: T.let = first + T.min(j, T.max(cached - 1, 0))
            copy_16_if(
                T.address_of(held_values[(i % ring * threads + tx) * width]),
                T.address_of(
                    values[
                        slot,
                        _buffer(k, previous, parity),
                        _offset(k, previous),
                        head * value_size + T.min(tile * columns + column, vectors - 1) * width,
                    ]
                ),
                T.Cast("int32", tirx.all(j < cached, tile * columns + column < vectors, group < groups)),
            )
            commit_copies()

        @T.inline
        def read_value(i, tile):
            """value = the thread's vector of its i-th value, or zeros."""
            if streamed:
                wait_copies(ring - 1)
                load_registers(
                    T.address_of(vector_bytes[0]), T.address_of(held_values[(i % ring * threads + tx) * width])
                )
                for p in T.unroll(width // part):
                    widen(T.address_of(value[p * part]), T.address_of(vector_bytes[p * (4 * part // width)]))
            else:
                k: T.let = first + i * groups + group
                for v in T.unroll(width):
                    value[v] = T.float32(0)
                if k < first + cached and tile * columns + column < vectors and group < groups:
                    for v in T.unroll(width):
                        value[v] = T.Cast(
                            "float32",
                            values[
                                slot,
                                _buffer(k, previous, parity),
                                _offset(k, previous),
                                head * value_size + (tile * columns + column) * width + v,
                            ],
                        )

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
            if head < rope_heads:
                angle[0] = cos[angle_row, k * threads + tx]
                angle[1] = sin[angle_row, k * threads + tx]

        @T.inline
        def load_own_value():
            """own_value = the thread's vectors of the token's value, or zeros."""
            for tile in T.unroll(passes):
                for v in T.unroll(width):
                    own_value[tile, v] = T.float32(0)
                if group == 0 and tile * columns + column < vectors:
                    for k in T.unroll(width // part):
                        for v in T.vectorized(part):
                            own_value[tile, k * part + v] = fresh[
                                row, head * value_size + (tile * columns + column) * width + k * part + v
                            ]

        @T.inline
        def add_own_value(tile):
            """It goes into the cache, and into the sums as it is there."""
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
            load_keys(0)
            for i in T.unroll(early):
                load_value(i, 0)
            if quantized:
                for i in T.unroll(scale_rounds):
                    if i * threads + tx < cached:
                        k: T.let = first + i * threads + tx
                        held_scales[i] = value_scales[
                            slot,
                            _buffer(k, previous, parity),
                            _offset(k, previous),
                            head,
                        ]
        wait_for_predecessor()
        if present > 0:
            for i in T.unroll(ring - early if streamed else 0):
                load_value(early + i, 0)
            # 1. The query; in the part with the token itself its key and memory key too.
            _normalize(scale, z, row, first_feature, size, eps, lane)
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
            for chunk in T.unroll(2):
                for r in T.unroll(key_rounds):
                    if r * team + tx % team < key_vectors:
                        for v in T.unroll(key_width):
                            held_query[chunk, r, v] = query[chunk, (r * team + tx % team) * key_width + v]
            for step in T.serial((cached + teams * key_loads - 1) // (teams * key_loads)):
                if step > 0:
                    load_keys(step * teams * key_loads)
                for i in T.unroll(key_loads):
                    j: T.let = (step * key_loads + i) * teams + tx // team
                    score[0] = T.float32(0)
                    if j < cached:
                        for r in T.unroll(key_rounds):
                            if r * team + tx % team < key_vectors:
                                for v in T.unroll(key_width):
                                    score[0] = score[0] + T.Select(
                                        first + j < previous, held_query[1, r, v], held_query[0, r, v]
                                    ) * load(held_keys, i, r, v)
                    score[0] = team_sum(score[0])
                    if j < cached and tx % team == 0:
                        scores[j] = score[0]
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
                for tile in T.unroll(passes):
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
            for tile in T.unroll(passes):
                if tile > 0:
                    for i in T.unroll(ring if streamed else 0):
                        load_value(i, tile)
                for v in T.unroll(width):
                    sums[v] = T.float32(0)
                for i in T.serial((cached + groups - 1) // groups):
                    read_value(i, tile)
                    weight[0] = T.if_then_else(
                        i * groups + group < cached, factors[T.min(i * groups + group, longest - 1)], T.float32(0)
                    )
                    for v in T.unroll(width):
                        sums[v] = sums[v] + weight[0] * value[v]
                    if streamed:
                        load_value(i + ring, tile)
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
                    for k in T.unroll(width // part):
                        for v in T.vectorized(part):
                            partial[row, head, p, (tile * columns + column) * width + k * part + v] = sums[k * part + v]

    return without_scales(kernel, value_dtype)
