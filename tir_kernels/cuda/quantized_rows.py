"""Products of one row with quantized weights on the tensor cores, for CUDA.

`mma` has place for 8 rows of activations. Each of the four 16-byte vectors of codes that it multiplies, a group's or
half of one's, gets a column of its own, in which the activations of the others are zero: so the scale is left for the
vector's sum. The other four columns hold what fp16 leaves of the activations, and the product is one in fp32.
"""

import math
from typing import Any

import numpy as np
from gecko_mlc.tir_kernels.cuda.code_products import STEPS, load_scales, multiply_codes, split_activations
from gecko_mlc.tir_kernels.cuda.intrinsics import (
    commit_copies,
    copy_16,
    lane_sum,
    load_registers,
    wait_copies,
    wait_for_predecessor,
)
from gecko_mlc.tir_kernels.cuda.row_inputs import (
    BLOCKS,
    THREADS,
    WARPS,
    Norm,
    Product,
    keep_order,
    load_stream,
    normalize_whole,
    shared_values,
    statistics,
)
from gecko_mlc.tir_kernels.machine import divide
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.group_quantization import GroupLayout

Expr = Any

# Outputs that are multiplied at a time, and the tiles of so many that a block has at most.
TILE, TILES = 16, 2
# Chunks, of a tile's four vectors in a row, that a thread holds, two 16-byte loads each: of one tile, or of each of
# several, whose places take registers as well.
CHUNKS = 4


def quantized_row(features: int, outputs: int, layout: GroupLayout, weights: int, norm: Norm | None) -> Product:
    """`split` warps share the inputs of a tile of outputs; the activations are in shared memory, and the scales of all
    outputs of the block. A thread is some chunks of codes ahead."""
    group_vectors = layout.words_per_group // 4
    vectors, codes = layout.quantization.groups(features) * group_vectors, layout.codes_per_word
    split = min(WARPS, 1 << (divide(vectors, 4) - 1).bit_length())
    teams = WARPS // split
    # More tiles for a block would be fewer blocks, whose waits do not hide each other.
    tiles = min(max(1, TILES // teams), divide(divide(outputs, TILE * weights * teams), BLOCKS))
    chunks = CHUNKS // tiles
    # Chunks that a warp holds of an output: all of a tile or of several tiles, or a part in each of `rounds`.
    rounds = divide(divide(vectors, 4 * split) * weights, chunks)
    ahead = divide(vectors, 4 * split * rounds)
    together = max(1, min(tiles, chunks // (ahead * weights)))
    batches = tiles // together
    count = batches * teams * together * TILE
    padded = ahead * rounds * split * 4
    exact = vectors == padded
    # Activations of a thread: whole words, a vector's by four threads.
    words = divide(padded * 4, THREADS)
    part = math.gcd(features, codes, 4)
    whole = norm is not None and norm.groups == 1
    compute_statistics = statistics(features, 1, norm) if norm is not None else None
    normalize = normalize_whole(features, norm, words * codes, WARPS) if norm is not None else None

    half = codes // 2
    split_word, multiply = split_activations(layout), multiply_codes(layout)

    # In shared memory, of the scales' dtype: the activations, after each chunk's zeros that stand for those of other
    # vectors, then what fp16 left of them, likewise, and the scales. An odd multiple of 16 bytes between outputs avoids
    # bank conflicts.
    size = np.dtype(layout.quantization.scale_dtype).itemsize
    sixteen, word_size = 16 // size, codes * 2 // size
    chunk_words, zeros = split * 16, 8 * sixteen
    step = chunk_words * word_size + zeros
    rest = ahead * rounds * step
    scales_begin = 2 * rest
    offset = layout.scale_offset(features)
    row_words = layout.shape(1, features)[1]
    scale_vectors = (row_words - offset) // 4
    scale_stride = (scale_vectors | 1) * sixteen
    load_pair = load_scales(layout.quantization.scale_dtype, 2 // group_vectors)
    # Of fp32: moments, what the code that stands for 0 adds to a vector's sum in both sets of columns, and partial sums
    # [weights, outputs, split].
    leasts = 2 * WARPS if whole else divide(2 * norm.groups, 4) * 4 if norm else 0
    partial = leasts + 2 * padded

    # From a round's codes to the next one's, and from a tile's to the next of the warp.
    round_words, tile_words = ahead * split * 16, teams * together * TILE * row_words

    def tile(team: Expr, s: Expr, w: Expr, g: Expr) -> Expr:
        """The first of a tile's outputs among those of the block, of both weights."""
        return w * count + ((s // rounds * teams + team) * together + g) * TILE

    def scale_of(vector: Expr) -> Expr:
        """Where the scale of a vector, or of it and the next, lies among an output's."""
        last = scale_vectors * sixteen - 2 // group_vectors
        return vector // group_vectors if exact else T.min(vector // group_vectors, last)

    @T.inline
    def load_activations(x, row, values, tx):
        for n in T.unroll(words):
            for p in T.unroll(codes // part):
                k: T.let = (n * THREADS + tx) * codes + p * part
                for v in T.vectorized(part):
                    values[n * codes + p * part + v] = T.float32(0)
                if k < features:
                    for v in T.vectorized(part):
                        values[n * codes + p * part + v] = x[row, k + v]

    @T.inline
    def scale_and_shift(values, gain, shift, scratch, tx):
        for n in T.unroll(words):
            for p in T.unroll(codes // part):
                if (n * THREADS + tx) * codes + p * part < features:
                    for v in T.vectorized(part):
                        k: T.let = (n * THREADS + tx) * codes + p * part + v
                        at: T.let = n * codes + p * part + v
                        if not whole:
                            values[at] = (values[at] - scratch[k // (features // norm.groups) * 2]) * scratch[
                                k // (features // norm.groups) * 2 + 1
                            ]
                        values[at] = values[at] * gain(k) + shift(k)
                else:
                    for v in T.vectorized(part):
                        values[n * codes + p * part + v] = T.float32(0)

    @T.inline
    def store_activations(values, shared, scratch, tx):
        total = T.alloc_buffer((1,), scope="local")
        for n in T.unroll(words):
            word: T.let = n * THREADS + tx
            total[0] = T.float32(0)
            for i in T.unroll(codes):
                total[0] = total[0] + values[n * codes + i]
            total[0] = lane_sum(4)(total[0])
            if word < padded * 4:
                split_word(
                    T.address_of(shared[word * word_size + word // chunk_words * zeros]),
                    T.address_of(shared[rest + word * word_size + word // chunk_words * zeros]),
                    T.address_of(values[n * codes]),
                )
                if tx % 4 == 0:
                    scratch[leasts + word // 4] = total[0] * T.float32(-layout.quantization.largest / STEPS)
                    scratch[leasts + padded + word // 4] = T.float32(0)

    @T.inline
    def compute(weight, second, x, b, row, gain, shift, first, end, shared, scratch, tx, finish):
        held = T.alloc_buffer((weights * together * ahead * 8,), "uint32", scope="local")
        values = T.alloc_buffer((words * codes,), scope="local")
        right = T.alloc_buffer((4 * half,), "uint32", scope="local")
        least = T.alloc_buffer((2,), scope="local")
        sums = T.alloc_buffer((4,), scope="local")
        scales = T.alloc_buffer((2,), scope="local")
        totals = T.alloc_buffer((weights * together * 2,), scope="local")
        result = T.alloc_buffer((weights,), scope="local")
        lane: T.let = tx % 32
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split
        # Places are variables: TVM would write their formulas into every load.
        begin = T.alloc_buffer((1,), "int32", scope="local")
        codes_at = T.alloc_buffer((1,), "int32", scope="local")
        scales_at = T.alloc_buffer((1,), "int32", scope="local")

        @T.inline
        def copy_scales(source, w):
            for n in T.unroll(divide(count * scale_vectors, THREADS)):
                i: T.let = n * THREADS + tx
                if i < count * scale_vectors:
                    copy_16(
                        T.address_of(
                            shared[
                                scales_begin
                                + (w * count + i // scale_vectors) * scale_stride
                                + i % scale_vectors * sixteen
                            ]
                        ),
                        T.address_of(
                            source[T.min(first + i // scale_vectors, end - 1), offset + i % scale_vectors * 4]
                        ),
                    )

        @T.inline
        def load_vectors(source, s, w, g, i):
            vector: T.let = ((s % rounds * ahead + i) * split + share) * 4 + lane % 4
            for line in T.unroll(2):
                o: T.let = first + tile(team, s, 0, g) + line * 8 + lane // 4
                load_stream(
                    T.address_of(held[((w * together + g) * ahead + i) * 8 + line * 4]),
                    T.address_of(source[0, codes_at[0] + (g * TILE + line * 8) * row_words + i * split * 16]),
                    T.Cast("int32", tirx.all(s < batches * rounds, o < end, vector < vectors)),
                )

        @T.inline
        def load(s, w, g, i):
            if w == 0:
                load_vectors(weight, s, w, g, i)
            else:
                load_vectors(second, s, w, g, i)

        copy_scales(weight, 0)
        if weights == 2:
            copy_scales(second, 1)
        commit_copies()
        for i in T.unroll(weights * together * ahead * 8):
            held[i] = T.uint32(0)
        codes_at[0] = (first + tile(team, 0, 0, 0) + lane // 4) * row_words + (share * 4 + lane % 4) * 4
        for i in T.unroll(ahead):
            for w in T.unroll(weights):
                for g in T.unroll(together):
                    load(0, w, g, i)
        wait_for_predecessor()
        if norm is not None and not whole:
            compute_statistics(x, b, row, scratch, tx)
            T.tvm_storage_sync("shared")
        load_activations(x, row, values, tx)
        if whole:
            normalize(values, lambda i: (i // codes * THREADS + tx) * codes + i % codes < features, scratch, tx)
        if norm is not None:
            scale_and_shift(values, gain, shift, scratch, tx)
        store_activations(values, shared, scratch, tx)
        for n in T.unroll(divide(ahead * rounds * zeros, THREADS)):
            i: T.let = n * THREADS + tx
            if i < ahead * rounds * zeros:
                shared[i // zeros * step + step - zeros + i % zeros] = tirx.const(0, layout.arithmetic)
        wait_copies(0)
        T.tvm_storage_sync("shared")
        # A lane has its vector's activations if they are its column's.
        begin[0] = T.Select(
            lane // 4 % 4 == lane % 4,
            lane // 16 * rest + (share * 4 + lane % 4) * 4 * word_size,
            T.int32(step - zeros + sixteen),
        )
        scales_at[0] = scales_begin + (tile(team, 0, 0, 0) + lane // 4) * scale_stride
        for s in T.serial(batches * rounds, annotations={"disable_unroll": True}):
            if s % rounds == 0:
                for i in T.unroll(weights * together * 2):
                    totals[i] = T.float32(0)
            last: T.let = s % rounds == rounds - 1
            codes_at[0] = codes_at[0] + T.Select(
                last, T.int32(tile_words - (rounds - 1) * round_words), T.int32(round_words)
            )
            for i in T.unroll(ahead):
                chunk: T.let = s % rounds * ahead + i
                for r in T.unroll(half):
                    load_registers(
                        T.address_of(right[r * 4]), T.address_of(shared[begin[0] + chunk * step + r * sixteen])
                    )
                # What a lane has of the sums: two vectors', of two outputs.
                vector: T.let = (chunk * split + share) * 4 + lane % 2 * 2
                for v in T.vectorized(2):
                    least[v] = scratch[leasts + lane // 2 % 2 * padded + vector + v]
                for w in T.unroll(weights):
                    for g in T.unroll(together):
                        at: T.let = ((w * together + g) * ahead + i) * 8
                        for j in T.unroll(4):
                            sums[j] = least[j % 2]
                        multiply(T.address_of(sums[0]), T.address_of(held[at]), T.address_of(right[0]))
                        for line in T.unroll(2):
                            load_pair(
                                T.address_of(scales[0]),
                                T.address_of(
                                    shared[
                                        scales_at[0]
                                        + (w * count + g * TILE + line * 8) * scale_stride
                                        + scale_of(vector)
                                    ]
                                ),
                            )
                            for v in T.unroll(2):
                                totals[(w * together + g) * 2 + line] = (
                                    totals[(w * together + g) * 2 + line] + scales[v] * sums[line * 2 + v]
                                )
                        load(s + 1, w, g, i)
                        keep_order()
            if last:
                scales_at[0] = scales_at[0] + teams * together * TILE * scale_stride
                for i in T.unroll(weights * together * 2):
                    totals[i] = lane_sum(4)(totals[i])
                if lane % 4 == 0:
                    for i in T.unroll(weights * together * 2):
                        o: T.let = tile(team, s, i // (2 * together), i // 2 % together) + i % 2 * 8 + lane // 4
                        scratch[partial + o * split + share] = totals[i] * T.float32(STEPS)
        T.tvm_storage_sync("shared")
        if tx < count and first + tx < end:
            for w in T.unroll(weights):
                result[w] = T.float32(0)
                for i in T.unroll(split):
                    result[w] = result[w] + scratch[partial + (w * count + tx) * split + i]
            finish(row, first + tx, result[0], result[weights - 1])

    scratch_size = partial + weights * count * split
    shared_size = shared_values(scales_begin + weights * count * scale_stride, size, scratch_size)
    return Product(count, 1, shared_size, scratch_size, compute)
