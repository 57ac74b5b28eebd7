"""Products of one row with quantized weights on the tensor cores, for CUDA.

A warp copies what it multiplies into a ring in shared memory, and waits for no other. A multiprocessor has two blocks,
no more: the next kernel's begin where one of these ends, and each has as many.

`mma` has place for 8 rows of activations. Each of the four 16-byte vectors of codes that it multiplies, a group's or
half of one's, gets a column of its own, in which the activations of the others are zero: so the scales are left for the
vector's sum. The other four columns hold the lower bytes of the activations.
"""

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.gemv.prologue import (
    BLOCKS,
    THREADS,
    WARPS,
    Norm,
    Product,
    keep_order,
    normalize_row,
    shared_values,
    statistics,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    commit_copies,
    copy_8_if,
    copy_16_if,
    lane_sum,
    load_registers,
    load_registers_8,
    wait_copies,
    wait_for_predecessor,
    warp_sum,
)
from gecko_mlc.tir_kernels.cuda.quantized.mma_int8 import load_scales, multiply_codes
from gecko_mlc.tir_kernels.cuda.quantized.activations import INTEGERS_BITS, UPPER, QuantizedRow, piece_bytes, portion
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_portion
from gecko_mlc.tir_kernels.hardware import CUDA, divide

Expr = Any

# Rows of weights that are multiplied at a time, those of a copy, and the vectors of each in a unit of copies.
TILE, ROWS, UNIT = 16, 4, 8
# Tiles of a block at most, for room for their sums.
TILES = 32
# Units of a warp that are on their way, where there is room for them, by the bits of a code. Before the predecessor has
# ended they are half of all at most, or waiting for it would be behind them.
DEPTH = {3: 3, 4: 4, 8: 5}


def quantized_gemv(
    features: int,
    extents: tuple[int, ...],
    layout: GroupLayout,
    weights: int,
    norm: Norm | None,
    machine: CUDA,
    incoming: QuantizedRow | None = None,
    together: int | None = None,
) -> Product:
    """`split` warps share the inputs of a tile: 16 rows of a weight, or 8 of each of two. The activations are in shared
    memory, and the units of codes and scales that are on their way. Activations that are `incoming` rounded may have an
    RMS norm, without a gain. Blocks have whole tiles, or whole numbers of outputs `together`."""
    group_vectors = layout.words_per_group // 4
    vectors, codes = layout.quantization.groups(features) * group_vectors, 4 * layout.codes_per_word
    units, tile_outputs = divide(vectors, UNIT), TILE // weights
    split = min(WARPS, 1 << (units - 1).bit_length())
    teams, rounds = WARPS // split, divide(units, split)
    blocks = share_blocks([divide(extent, teams * tile_outputs) for extent in extents])
    share_outputs = together or tile_outputs
    shares = [divide(extent, share_outputs) for extent in extents]
    most_shares = max(divide(extent, number) for extent, number in zip(shares, blocks, strict=True))
    count = divide(most_shares * share_outputs, tile_outputs) * tile_outputs
    unit_chunks = UNIT // 4
    chunks = rounds * split * unit_chunks
    # Portions of codes whose activations a thread brings to shared memory, for its own warp.
    per_vector = 4 // portion(layout).words
    size = codes // per_vector
    portions = divide(rounds * UNIT * per_vector, 32)
    part = math.gcd(features, size, 4)
    here = norm if incoming is None else None
    whole = here is not None and here.groups == 1
    compute_statistics = statistics(features, 1, here) if here is not None else None
    # Teams have the same rows: their sums are so many times as large.
    normalize = normalize_row(features * teams, here, portions * size, WARPS) if here is not None else None
    round_one, multiply = quantize_portion(layout), multiply_codes(layout)
    load_piece = load_registers if piece_bytes(layout) == 16 else load_registers_8

    # In shared memory, in values of the scales' dtype: the activations, pieces of a chunk's vectors next to each other,
    # as many zeros as a unit's have, then the ring, for each warp units of codes, each with its scales after it.
    scale_size = np.dtype(layout.quantization.scale_dtype).itemsize
    sixteen, piece = 16 // scale_size, piece_bytes(layout) // scale_size
    pieces = codes // piece_bytes(layout)
    zeros = chunks * pieces * 8 * piece
    unit_pieces = unit_chunks * pieces * 8 * piece
    ring = zeros + unit_pieces
    offset, row_words = layout.scale_offset(features), layout.shape(1, features)[1]
    scale_bytes = UNIT // group_vectors * scale_size
    scale_part = min(16, scale_bytes)
    copy_part, scale_lanes = (copy_16_if if scale_part == 16 else copy_8_if), scale_bytes // scale_part
    unit_codes = TILE * UNIT * sixteen
    unit_values = unit_codes + TILE * scale_bytes // scale_size
    load_pair = load_scales(layout.quantization.scale_dtype, 2 // group_vectors)
    # Of 4 bytes: moments, of each vector what is taken from its sums (of upper bytes, of lower ones) and their factor,
    # and partial sums [weights, outputs, split].
    corrections = 2 * WARPS if whole else divide(2 * here.groups, 4) * 4 if here else 0
    factors = corrections + 2 * chunks * 4
    partial = factors + chunks * 4
    # Of an incoming row, 16 bytes at a time: a unit's activations, fp32 of a kind of a warp's units; rounds of squares.
    unit_copies = unit_chunks * pieces * 8
    float_copies = rounds * unit_chunks
    squares_rounds = divide(incoming.squares, 32) if incoming is not None and norm is not None else 0
    scratch_size = partial + weights * count * split
    half = (machine.shared_memory - 1024) // 2
    fitting = (half - ring * scale_size - 4 * scratch_size) // (WARPS * unit_values * scale_size)
    most = divide(count, tile_outputs * teams) * rounds
    depth = max(1, min(DEPTH[layout.code_bits], most, fitting))
    early = max(1, min(depth, most // 2))

    # From a round's codes to the next one's, and from a tile's to the next of the team.
    round_words, tile_words = split * UNIT * 4, teams * tile_outputs * row_words
    to_next_tile = tile_words - (rounds - 1) * round_words
    round_scales = split * scale_bytes // 4

    def there(output: Expr, stop: Expr, within: Expr) -> Expr:
        """Whether an output is the block's, and a part of its row exists."""
        conditions = [output < stop]
        if vectors != rounds * split * UNIT:
            conditions.append(within)
        return T.Cast("int32", tirx.all(*conditions))

    def first_output(block: Expr, matrix: int) -> Expr:
        return block * shares[matrix] // blocks[matrix] * share_outputs

    def vector_of(n: Expr, tx: Expr) -> Expr:
        """The vector of a thread's portion n, one of its warp's in turn."""
        place = n * 32 + tx % 32
        unit = place // (UNIT * per_vector) * split + tx // 32 % split
        return unit * UNIT + place % (UNIT * per_vector) // per_vector

    def first_input(n: Expr, tx: Expr) -> Expr:
        return vector_of(n, tx) * codes + tx % per_vector * size

    @T.inline
    def load_activations(x, row, values, tx):
        for n in T.unroll(portions):
            for p in T.unroll(size // part):
                k: T.let = first_input(n, tx) + p * part
                for v in T.vectorized(part):
                    values[n * size + p * part + v] = T.float32(0)
                if k < features:
                    for v in T.vectorized(part):
                        values[n * size + p * part + v] = x[row, k + v]

    @T.inline
    def load_norm(gain, shift, gains, shifts, tx):
        for n in T.unroll(portions):
            for p in T.unroll(size // part):
                k: T.let = first_input(n, tx) + p * part
                if k < features:
                    for v in T.vectorized(part):
                        gains[n * size + p * part + v] = gain(k + v)
                    for v in T.vectorized(part):
                        shifts[n * size + p * part + v] = shift(k + v)

    @T.inline
    def scale_and_shift(values, gains, shifts, scratch, tx):
        for n in T.unroll(portions):
            for p in T.unroll(size // part):
                if first_input(n, tx) + p * part < features:
                    for v in T.vectorized(part):
                        k: T.let = first_input(n, tx) + p * part + v
                        at: T.let = n * size + p * part + v
                        if not whole:
                            values[at] = (values[at] - scratch[k // (features // norm.groups) * 2]) * scratch[
                                k // (features // norm.groups) * 2 + 1
                            ]
                        values[at] = values[at] * gains[at] + shifts[at]
                else:
                    for v in T.vectorized(part):
                        values[n * size + p * part + v] = T.float32(0)

    @T.inline
    def store_activations(values, shared, scratch, tx):
        for n in T.unroll(portions):
            vector: T.let = vector_of(n, tx)

            @T.inline
            def keep(kind, value):
                scratch[corrections + kind * chunks * 4 + vector] = value

            round_one(
                values,
                n * size,
                T.address_of(shared[(vector // 4 * pieces * 8 + vector % 4) * piece]),
                tx % per_vector,
                vector < chunks * 4,
                keep,
            )

    @T.inline
    def copy_activations(x, row, shared, scratch, tx):
        """Those that a warp multiplies, of an incoming row."""
        lane: T.let = tx % 32
        share: T.let = tx // 32 % split
        for n in T.unroll(divide(rounds * unit_copies, 32)):
            unit: T.let = (n * 32 + lane) // unit_copies * split + share
            place: T.let = unit * unit_copies + (n * 32 + lane) % unit_copies
            if n * 32 + lane < rounds * unit_copies:
                copy_16_if(
                    T.address_of(shared[place * piece]),
                    T.address_of(x[row, place * 4]),
                    T.Cast("int32", place < vectors * 2 * pieces),
                )
        for n in T.unroll(divide(3 * float_copies, 32)):
            kind: T.let = (n * 32 + lane) // float_copies
            within: T.let = (n * 32 + lane) % float_copies
            chunk: T.let = (within // unit_chunks * split + share) * unit_chunks + within % unit_chunks
            if n * 32 + lane < 3 * float_copies:
                copy_16_if(
                    T.address_of(scratch[corrections + (kind * chunks + chunk) * 4]),
                    T.address_of(x[row, incoming.floats(kind) + chunk * 4]),
                    T.Cast("int32", chunk * 4 < vectors),
                )
        commit_copies()

    @T.inline
    def compute(weight, second, x, b, row, gain, shift, block, matrix, shared, scratch, tx, addend, finish):
        values = T.alloc_buffer((portions * size,), scope="local")
        gains = T.alloc_buffer((portions * size,), scope="local")
        shifts = T.alloc_buffer((portions * size,), scope="local")
        held = T.alloc_buffer((8,), "uint32", scope="local")
        right = T.alloc_buffer((codes // 4,), "uint32", scope="local")
        sums = T.alloc_buffer((4,), "uint32", scope="local")
        correction = T.alloc_buffer((2,), scope="local")
        factor = T.alloc_buffer((2,), scope="local")
        scales = T.alloc_buffer((2,), scope="local")
        totals = T.alloc_buffer((2,), scope="local")
        result = T.alloc_buffer((weights,), scope="local")
        addends = T.alloc_buffer((divide(count, THREADS),), scope="local")
        squares = T.alloc_buffer((max(1, squares_rounds),), scope="local")
        lane: T.let = tx % 32
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split
        # The block's outputs.
        begin: T.let = first_output(block, matrix)
        stop: T.let = T.min(first_output(block + 1, matrix), extents[matrix])
        steps: T.let = (stop - begin + teams * tile_outputs - 1) // (teams * tile_outputs) * rounds
        # Places are variables: TVM would write their formulas into every use.
        own = T.alloc_buffer((1,), "int32", scope="local")
        slot = T.alloc_buffer((1,), "int32", scope="local")
        codes_from = T.alloc_buffer((1,), "int32", scope="local")
        scales_from = T.alloc_buffer((1,), "int32", scope="local")
        codes_to = T.alloc_buffer((1,), "int32", scope="local")
        reads = T.alloc_buffer((2,), "int32", scope="local")
        inputs_at = T.alloc_buffer((1,), "int32", scope="local")
        inputs_step = T.alloc_buffer((1,), "int32", scope="local")
        vector_at = T.alloc_buffer((1,), "int32", scope="local")
        scales_at = T.alloc_buffer((1,), "int32", scope="local")

        @T.inline
        def copy_rows(source, s, line):
            """A lane's vectors of 8 rows, four by four."""
            first: T.let = begin + (s // rounds * teams + team) * tile_outputs
            for q in T.unroll(2):
                copy_16_if(
                    T.address_of(shared[slot[0] + codes_to[0] + (line + q * ROWS) * UNIT * sixteen]),
                    T.address_of(source[0, codes_from[0] + (line % tile_outputs + q * ROWS) * row_words]),
                    there(
                        first + line % tile_outputs + q * ROWS + lane // 8,
                        stop,
                        (s % rounds * split + share) * UNIT + lane % 8 < vectors,
                    ),
                )

        @T.inline
        def copy_scales(source, s, line):
            """Of 8 rows, or of all of a tile's."""
            first: T.let = begin + (s // rounds * teams + team) * tile_outputs
            if lane // scale_lanes // tile_outputs == line // tile_outputs and lane // scale_lanes < TILE:
                copy_part(
                    T.address_of(shared[slot[0] + unit_codes + lane * (scale_part // scale_size)]),
                    T.address_of(source[0, scales_from[0]]),
                    there(
                        first + lane // scale_lanes % tile_outputs,
                        stop,
                        offset + ((s % rounds * split + share) * scale_lanes + lane % scale_lanes) * (scale_part // 4)
                        < row_words,
                    ),
                )

        @T.inline
        def copy(s):
            copy_rows(weight, s, 0)
            copy_scales(weight, s, 0)
            if weights == 2:
                copy_rows(second, s, 8)
                copy_scales(second, s, 8)
            else:
                copy_rows(weight, s, 8)
            commit_copies()
            codes_from[0] = codes_from[0] + T.Select(
                s % rounds == rounds - 1, T.int32(to_next_tile), T.int32(round_words)
            )
            scales_from[0] = scales_from[0] + T.Select(
                s % rounds == rounds - 1, T.int32(tile_words - (rounds - 1) * round_scales), T.int32(round_scales)
            )

        own[0] = ring + tx // 32 * depth * unit_values
        codes_from[0] = (begin + team * tile_outputs + lane // 8) * row_words + (share * UNIT + lane % 8) * 4
        scales_from[0] = (
            (begin + team * tile_outputs + lane // scale_lanes % tile_outputs) * row_words
            + offset
            + (share * scale_lanes + lane % scale_lanes) * (scale_part // 4)
        )
        # Rows of 128 bytes: of neighbours, the halves are exchanged in one, and reads have no bank conflicts.
        codes_to[0] = (lane // 8 * UNIT + T.bitwise_xor(lane % 8, lane // 8 % 2 * 4)) * sixteen
        for i in T.unroll(2):
            reads[i] = (lane // 4 * UNIT + T.bitwise_xor(lane % 4 + i * 4, lane // 4 % 2 * 4)) * sixteen
        for i in T.unroll(early):
            slot[0] = own[0] + i * unit_values
            copy(i)
        for n in T.unroll(divide(unit_pieces, THREADS)):
            if n * THREADS + tx < unit_pieces:
                shared[zeros + n * THREADS + tx] = tirx.const(0, layout.arithmetic)
        T.tvm_storage_sync("shared")
        # Parameters come from memory: that is a microsecond, which passes while the predecessor ends.
        if here is not None:
            load_norm(gain, shift, gains, shifts, tx)
        wait_for_predecessor()
        if here is not None and not whole:
            compute_statistics(x, b, row, scratch, tx)
            T.tvm_storage_sync("shared")
        if incoming is None:
            load_activations(x, row, values, tx)
        else:
            copy_activations(x, row, shared, scratch, tx)
            for k in T.unroll(squares_rounds):
                squares[k] = T.float32(0)
                if k * 32 + lane < incoming.squares:
                    squares[k] = T.reinterpret("float32", x[row, incoming.floats(3) + k * 32 + lane])
        for n in T.unroll(divide(count, THREADS)):
            o: T.let = n * THREADS + tx
            if begin + o < stop:
                addends[n] = addend(row, begin + o)
        if whole:
            normalize(values, lambda i: first_input(i // size, tx) + i % size < features, scratch, tx)
        if here is not None:
            scale_and_shift(values, gains, shifts, scratch, tx)
        if incoming is None:
            store_activations(values, shared, scratch, tx)
        for i in T.unroll(depth - early):
            slot[0] = own[0] + (early + i) * unit_values
            copy(early + i)
        if incoming is not None:
            wait_copies(depth - early)
        # A lane has its vector's activations if they are its column's, or else zeros.
        inputs_at[0] = T.Select(
            lane // 4 % 4 == lane % 4,
            share * unit_pieces + (lane // 16 * 4 + lane % 4) * piece,
            zeros,
        )
        inputs_step[0] = T.Select(lane // 4 % 4 == lane % 4, T.int32(split * unit_pieces), 0)
        # What a lane has of the sums: two vectors', of two outputs.
        vector_at[0] = share * UNIT + lane % 2 * 2
        scales_at[0] = unit_codes + lane // 4 * (scale_bytes // scale_size) + lane % 2 * 2 // group_vectors
        slot[0] = own[0]
        for s in T.serial(steps, annotations={"disable_unroll": True}):
            if s % rounds == 0:
                for line in T.unroll(2):
                    totals[line] = T.float32(0)
            wait_copies(depth - 1)
            # What other lanes copied is there, and, below, has been read by them.
            keep_order()
            for c in T.unroll(unit_chunks):
                for line in T.unroll(2):
                    load_registers(
                        T.address_of(held[line * 4]),
                        T.address_of(shared[slot[0] + reads[c] + line * 8 * UNIT * sixteen]),
                    )
                for r in T.unroll(pieces):
                    load_piece(
                        T.address_of(right[r * (piece * scale_size // 4)]),
                        T.address_of(shared[inputs_at[0] + (c * pieces + r) * 8 * piece]),
                    )
                for v in T.vectorized(2):
                    correction[v] = scratch[
                        corrections + lane // 2 % 2 * chunks * 4 + vector_at[0] + s % rounds * split * UNIT + c * 4 + v
                    ]
                for v in T.vectorized(2):
                    factor[v] = scratch[factors + vector_at[0] + s % rounds * split * UNIT + c * 4 + v]
                for i in T.unroll(4):
                    sums[i] = T.uint32(INTEGERS_BITS)
                multiply(T.address_of(sums[0]), T.address_of(held[0]), T.address_of(right[0]))
                for line in T.unroll(2):
                    load_pair(
                        T.address_of(scales[0]),
                        T.address_of(
                            shared[
                                slot[0] + scales_at[0] + line * 8 * (scale_bytes // scale_size) + c * 4 // group_vectors
                            ]
                        ),
                    )
                    for v in T.unroll(2):
                        totals[line] = totals[line] + scales[v] * (
                            (T.reinterpret("float32", sums[line * 2 + v]) - correction[v]) * factor[v]
                        )
            inputs_at[0] = T.Select(
                s % rounds == rounds - 1, inputs_at[0] - (rounds - 1) * inputs_step[0], inputs_at[0] + inputs_step[0]
            )
            keep_order()
            copy(s + depth)
            slot[0] = T.Select(slot[0] == own[0] + (depth - 1) * unit_values, own[0], slot[0] + unit_values)
            if s % rounds == rounds - 1:
                for line in T.unroll(2):
                    totals[line] = lane_sum(4)(totals[line] * T.Select(lane % 4 < 2, T.float32(UPPER), T.float32(1)))
                if lane % 4 == 0:
                    for line in T.unroll(2):
                        o: T.let = (s // rounds * teams + team) * tile_outputs + line * 8 % tile_outputs + lane // 4
                        if o < count:
                            scratch[partial + (line * 8 // tile_outputs * count + o) * split + share] = totals[line]
        if squares_rounds > 0:
            for k in T.unroll(squares_rounds - 1):
                squares[0] = squares[0] + squares[k + 1]
            squares[0] = T.float32(1) / T.sqrt(warp_sum(squares[0]) / T.float32(features) + T.float32(norm.eps))
        T.tvm_storage_sync("shared")
        for n in T.unroll(divide(count, THREADS)):
            o: T.let = n * THREADS + tx
            if begin + o < stop:
                for w in T.unroll(weights):
                    result[w] = T.float32(0)
                    for i in T.unroll(split):
                        result[w] = result[w] + scratch[partial + (w * count + o) * split + i]
                    if squares_rounds > 0:
                        result[w] = result[w] * squares[0]
                finish(row, begin + o, result[0], result[weights - 1], addends[n])

    # Three blocks do not fit.
    needed = max(ring + WARPS * depth * unit_values, (machine.shared_memory // 3 - 4 * scratch_size) // scale_size)
    shared_size = shared_values(needed, scale_size, scratch_size)
    return Product(blocks, 1, shared_size, scratch_size, compute, count, first_output)


def share_blocks(tiles: list[int]) -> list[int]:
    """Blocks for each of some matrices of so many tiles: no more than there are at a time, if they suffice."""
    blocks = [divide(extent, TILES) for extent in tiles]
    while sum(blocks) < min(BLOCKS, sum(tiles)):
        blocks[max(range(len(tiles)), key=lambda i: tiles[i] / blocks[i])] += 1
    return blocks
