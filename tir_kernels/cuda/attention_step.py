"""Sliding chunk attention of one decoded token (specification 2.6), for CUDA.

The positions that a head sees are split into parts, which `attention_merge` joins. What it needs of 2.4 and 2.5 is
made from z once more: that is less than another launch.
"""

import functools
import math
from typing import Any

from gecko_mlc.tir_kernels.cuda.attention_codes import WIDTH, codes_sum
from gecko_mlc.tir_kernels.cuda.attention_inputs import affine
from gecko_mlc.tir_kernels.cuda.attention_sums import in_16_bytes, values_sum
from gecko_mlc.tir_kernels.cuda.intrinsics import (
    RESIDENT_BLOCKS,
    copy_16_if,
    lane_sum,
    launch_dependents,
    wait_for_predecessor,
    warp_maximum,
    warp_sum,
)
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.machine import USUAL_SHARED_BYTES, divide
from gecko_mlc.tir_kernels.math import MASKED, f32, loader
from gecko_mlc.tir_kernels.value_cache import code_of, inverse_of, scale_of, without_scales
from tvm import DataType, tirx
from tvm.script import tirx as T

Expr = Any

# Blocks of `attend` for a sequence: three on each of the 132 multiprocessors of the large GPUs.
RESIDENT, BLOCKS = 3, 396
# Vectors of keys that a thread has on their way at a time.
LOADS = 8


def parts(chunk_size: int, heads: int) -> int:
    """Parts that a window is split into; at least 32 positions each if the window is full."""
    return max(1, min(divide(BLOCKS, heads), 2 * chunk_size // 32))


def visible_positions(chunk: Expr, offset: Expr, chunk_size: int) -> Expr:
    """Positions that a token sees: the previous chunk and then its own, up to itself."""
    return T.Select(chunk >= 1, chunk_size, 0) + offset + 1


def part_length(visible: Expr, count: int) -> Expr:
    """Positions of each of `count` parts. The last parts may have fewer, or none, as short ones do not pay."""
    return T.max((visible + count - 1) // count, LOADS)


def _place(j: Expr, turn: Any, places: Any) -> Expr:
    """Where a part's position j is in a slot's two chunk buffers: `turn` of them are in the previous chunk's."""
    return j + T.Select(j < turn[0], places[0], places[1])


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
    longest = max(divide(2 * chunk_size, count), LOADS)
    quantized = value_dtype == "int8"
    # Scores: a team of lanes for each key.
    key_width = math.gcd(size, in_16_bytes(key_dtype))
    team = min(32, 1 << (size // key_width - 1).bit_length())
    key_vectors = size // key_width
    key_rounds = divide(key_vectors, team)
    # Values: whole vectors of codes are multiplied on the tensor cores.
    if quantized and value_size % WIDTH == 0:
        value_sum = codes_sum(value_size, longest)
    else:
        value_sum = values_sum(value_size, longest, value_dtype)
    columns, groups, passes, runs, run, first_column = value_sum.columns
    part = math.gcd(run, 4)
    threads = value_sum.threads
    teams = threads // team
    # Keys that a team has on their way at a time.
    key_loads = min(divide(longest, teams), LOADS // key_rounds if key_rounds < LOADS else 1)
    # So much of dynamic shared memory that TVM asks for more than the usual, which the rest would exceed.
    held_bytes = max(value_sum.held_bytes, USUAL_SHARED_BYTES + 16) if value_sum.held_bytes else 16
    pair_rounds, weight_rounds = divide(half, threads), divide(longest, threads)
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
        # What values are multiplied by: codes by their scales too.
        weights = (
            T.alloc_buffer(value_sum.weights_shape, value_sum.weights_dtype, scope="shared")
            if quantized
            else numerators
        )
        # The largest magnitude of the token's value.
        largest = T.alloc_buffer((threads // 32,), scope="shared")
        # Of all groups but the first.
        totals = T.alloc_buffer((max(groups - 1, 1), columns * runs * run), scope="shared")
        gains = T.alloc_buffer((pair_rounds, 2), scope="local")
        shifts = T.alloc_buffer((pair_rounds, 2), scope="local")
        scale = T.alloc_buffer((1,), scope="local")
        pair = T.alloc_buffer((2,), scope="local")
        angle = T.alloc_buffer((2,), scope="local")
        rounded = T.alloc_buffer((2,), key_dtype, scope="local")
        held_query = T.alloc_buffer((2, key_rounds, key_width), scope="local")
        held_keys = T.alloc_buffer((key_loads, key_rounds, key_width), key_dtype, scope="local")
        held_weights = T.alloc_buffer((weight_rounds,), scope="local")
        held_values = T.alloc_buffer((held_bytes * 8 // DataType(value_dtype).bits,), value_dtype, scope="shared.dyn")
        own_value = T.alloc_buffer((passes, runs * run), scope="local")
        cached_value = T.alloc_buffer((run,), value_dtype, scope="local")
        score = T.alloc_buffer((1,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        weight = T.alloc_buffer((1,), scope="local")
        unit = T.alloc_buffer((1,), scope="local")
        sums = T.alloc_buffer((runs * run,), scope="local")
        cached = T.alloc_buffer((1,), "int32", scope="local")
        turn = T.alloc_buffer((1,), "int32", scope="local")
        places = T.alloc_buffer((2,), "int32", scope="local")
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
        wait_for_predecessor()

        parity: T.let = position[slot, 0] % 2
        offset: T.let = position[slot, 1]
        visible: T.let = visible_positions(position[slot, 0], offset, chunk_size)
        previous: T.let = visible - offset - 1
        length: T.let = part_length(visible, count)
        first: T.let = p * length
        present: T.let = T.min(length, visible - first)
        has_token: T.let = first + present == visible
        # Those that are in the cache: the token itself is not.
        cached[0] = T.min(length, visible - 1 - first)
        turn[0] = previous - first
        places[0] = (1 - parity) * chunk_size + first
        places[1] = parity * chunk_size + first - previous

        @T.inline
        def load_keys(j0):
            """held_keys = those of a team, `teams` apart, of positions from first + j0 on."""
            for i in T.unroll(key_loads):
                if j0 + i * teams + tx // team < cached[0]:
                    place: T.let = _place(j0 + i * teams + tx // team, turn, places)
                    for r in T.unroll(key_rounds):
                        if r * team + tx % team < key_vectors:
                            for v in T.vectorized(key_width):
                                held_keys[i, r, v] = keys[
                                    slot,
                                    place // chunk_size,
                                    place % chunk_size,
                                    first_feature + (r * team + tx % team) * key_width + v,
                                ]

        @T.inline
        def copy_vector(destination, j, first_column, exists):
            """16 bytes of the part's j-th value on their way; zeros, and nothing is read, unless it exists."""
            place: T.let = _place(j, turn, places)
            copy_16_if(
                destination,
                T.address_of(values[slot, place // chunk_size, place % chunk_size, head * value_size + first_column]),
                T.Cast("int32", exists),
            )

        @T.inline
        def read_vector(value, width, j, first_column):
            """value = `width` numbers of the part's j-th value."""
            place: T.let = _place(j, turn, places)
            for v in T.unroll(width):
                value[v] = T.Cast(
                    "float32",
                    values[slot, place // chunk_size, place % chunk_size, head * value_size + first_column + v],
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
                for v in T.unroll(runs * run):
                    own_value[tile, v] = T.float32(0)
                for r in T.unroll(runs):
                    if group == 0 and first_column(tile, r, column) < value_size:
                        for k in T.unroll(run // part):
                            for v in T.vectorized(part):
                                own_value[tile, r * run + k * part + v] = fresh[
                                    row, head * value_size + first_column(tile, r, column) + k * part + v
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
            for r in T.unroll(runs):
                if group == 0 and first_column(tile, r, column) < value_size:
                    for v in T.unroll(run):
                        cached_value[v] = convert_value(own_value[tile, r * run + v], score[0])
                    for v in T.vectorized(run):
                        values[slot, parity, offset, head * value_size + first_column(tile, r, column) + v] = (
                            cached_value[v]
                        )
                    for v in T.unroll(run):
                        sums[r * run + v] = sums[r * run + v] + weight[0] * load_cached(cached_value, v)

        if present > 0:
            load_keys(0)
            value_sum.begin(held_values, 0, cached[0], copy_vector, tx)
            if quantized:
                for i in T.unroll(weight_rounds):
                    held_weights[i] = T.float32(0)
                    if i * threads + tx < cached[0]:
                        place: T.let = _place(i * threads + tx, turn, places)
                        held_weights[i] = value_scales[slot, place // chunk_size, place % chunk_size, head]
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
            for step in T.serial((cached[0] + teams * key_loads - 1) // (teams * key_loads)):
                if step > 0:
                    load_keys(step * teams * key_loads)
                for i in T.unroll(key_loads):
                    j: T.let = (step * key_loads + i) * teams + tx // team
                    score[0] = T.float32(0)
                    if j < cached[0]:
                        for r in T.unroll(key_rounds):
                            if r * team + tx % team < key_vectors:
                                for v in T.unroll(key_width):
                                    score[0] = score[0] + T.Select(
                                        j < turn[0], held_query[1, r, v], held_query[0, r, v]
                                    ) * load(held_keys, i, r, v)
                    score[0] = team_sum(score[0])
                    if j < cached[0] and tx % team == 0:
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
                for i in T.unroll(weight_rounds):
                    if i * threads + tx < cached[0]:
                        held_weights[i] = held_weights[i] * numerators[i * threads + tx]
            if quantized and has_token:
                score[0] = T.float32(0)
                for tile in T.unroll(passes):
                    for v in T.unroll(runs * run):
                        score[0] = T.max(score[0], T.abs(own_value[tile, v]))
                score[0] = warp_maximum(score[0])
                if lane == 0:
                    largest[tx // 32] = score[0]
            value_sum.weigh(weights, unit, held_weights, tx)
            if tx < 32:
                score[0] = T.float32(0)
                for k in T.serial((present + 31) // 32):
                    if k * 32 + lane < present:
                        score[0] = score[0] + numerators[k * 32 + lane]
                score[0] = warp_sum(score[0])
                if lane == 0:
                    statistics[row, head, p, 0] = maximum[0]
                    statistics[row, head, p, 1] = score[0]

            # 4. The weighted sum of values.
            for tile in T.unroll(passes):
                if tile > 0:
                    value_sum.begin(held_values, tile, cached[0], copy_vector, tx)
                value_sum.add(sums, held_values, weights, unit, tile, cached[0], copy_vector, read_vector, tx)
                if has_token:
                    add_own_value(tile)
                if groups > 1:
                    if group > 0 and group < groups:
                        for v in T.unroll(runs * run):
                            totals[group - 1, column * runs * run + v] = sums[v]
                    T.tvm_storage_sync("shared")
                    if group == 0:
                        for g in T.unroll(groups - 1):
                            for v in T.unroll(runs * run):
                                sums[v] = sums[v] + totals[g, column * runs * run + v]
                for r in T.unroll(runs):
                    if group == 0 and first_column(tile, r, column) < value_size:
                        for k in T.unroll(run // part):
                            for v in T.vectorized(part):
                                partial[row, head, p, first_column(tile, r, column) + k * part + v] = sums[
                                    r * run + k * part + v
                                ]

    return without_scales(kernel, value_dtype)
