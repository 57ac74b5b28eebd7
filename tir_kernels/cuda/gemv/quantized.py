"""GEMV of one row with quantized weights on the tensor cores, for CUDA.

A warp copies what it multiplies into a ring in shared memory, and waits for no other. A multiprocessor has two blocks,
no more: the next kernel's begin where one of these ends, and each has as many.

`mma` has place for 8 rows of activations. Each of the four 16-byte vectors of codes that it multiplies, a group's or
half of one's, gets a column of its own, in which the activations of the others are zero: so the scales are left for the
vector's sum. The other four columns hold the lower bytes of the activations.
"""

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue
from gecko_mlc.tir_kernels.cuda.gemv.quantized_activations import copy_activations, quantization
from gecko_mlc.tir_kernels.cuda.gemv.quantized_tiling import ROWS, TILE, UNIT, Tiling
from gecko_mlc.tir_kernels.cuda.gemv.schedule import GEMV, THREADS, keep_order
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
from gecko_mlc.tir_kernels.cuda.quantized.activations import INTEGERS_BITS, UPPER, QuantizedRow, piece_bytes
from gecko_mlc.tir_kernels.cuda.quantized.mma_int8 import load_scales, multiply_codes
from gecko_mlc.tir_kernels.hardware import CUDA, divide


def quantized_gemv(
    features: int,
    extents: tuple[int, ...],
    layout: GroupLayout,
    count: int,
    norm: NormPrologue | None,
    hardware: CUDA,
    incoming: QuantizedRow | None = None,
    multiple: int | None = None,
) -> GEMV:
    """One row, with `count` weights for each output. The activations are in shared memory, and the units of codes and
    scales that are on their way. Activations that are quantized (`incoming`) may have an RMS norm, without a gain.
    Blocks make multiples of a tile, or of `multiple` outputs."""
    tiling = Tiling(features, extents, layout, count, norm if incoming is None else None, hardware, multiple)
    split, teams, rounds, depth, early = tiling.split, tiling.teams, tiling.rounds, tiling.depth, tiling.early
    tile_outputs, block_outputs, row_words = tiling.tile_outputs, tiling.block_outputs, tiling.row_words
    group_vectors, unit_chunks, chunks = tiling.group_vectors, tiling.unit_chunks, tiling.chunks
    scale_size, vector_elements = tiling.scale_size, tiling.vector_elements
    pieces, piece, unit_pieces = tiling.pieces, tiling.piece, tiling.unit_pieces
    unit_codes, unit_values = tiling.unit_codes, tiling.unit_values
    # Scales of a row of a unit: copies of so many bytes, each by a lane.
    scale_part = min(16, tiling.scale_bytes)
    copy_part, scale_lanes = (copy_16_if if scale_part == 16 else copy_8_if), tiling.scale_bytes // scale_part
    load_piece = load_registers if piece_bytes(layout) == 16 else load_registers_8
    load_pair = load_scales(layout.quantization.scale_dtype, 2 // group_vectors)
    multiply = multiply_codes(layout)
    quantize = quantization(features, tiling, norm) if incoming is None else None
    copy_incoming = copy_activations(tiling, incoming) if incoming is not None else None
    values_held = tiling.portions * tiling.portion_size
    squares_rounds = divide(incoming.squares, 32) if incoming is not None and norm is not None else 0

    @T.inline
    def compute(operands, block, epilogue):
        row, tx = T.meta_var(block.row), T.meta_var(block.tx)
        shared, scratch = T.meta_var(block.shared), T.meta_var(block.scratch)
        values = T.alloc_buffer((values_held,), scope="local")
        gains = T.alloc_buffer((values_held,), scope="local")
        shifts = T.alloc_buffer((values_held,), scope="local")
        held = T.alloc_buffer((8,), "uint32", scope="local")
        right = T.alloc_buffer((tiling.codes // 4,), "uint32", scope="local")
        sums = T.alloc_buffer((4,), "uint32", scope="local")
        correction = T.alloc_buffer((2,), scope="local")
        factor = T.alloc_buffer((2,), scope="local")
        scales = T.alloc_buffer((2,), scope="local")
        totals = T.alloc_buffer((2,), scope="local")
        result = T.alloc_buffer((count,), scope="local")
        addends = T.alloc_buffer((divide(block_outputs, THREADS),), scope="local")
        squares = T.alloc_buffer((max(1, squares_rounds),), scope="local")
        lane: T.let = tx % 32
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split
        # The block's outputs.
        begin: T.let = tiling.first_output(block.index, block.matrix)
        stop: T.let = T.min(tiling.first_output(block.index + 1, block.matrix), extents[block.matrix])
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
                    T.address_of(shared[slot[0] + codes_to[0] + (line + q * ROWS) * UNIT * vector_elements]),
                    T.address_of(source[0, codes_from[0] + (line % tile_outputs + q * ROWS) * row_words]),
                    tiling.present(
                        first + line % tile_outputs + q * ROWS + lane // 8,
                        stop,
                        (s % rounds * split + share) * UNIT + lane % 8 < tiling.vectors,
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
                    tiling.present(
                        first + lane // scale_lanes % tile_outputs,
                        stop,
                        tiling.offset
                        + ((s % rounds * split + share) * scale_lanes + lane % scale_lanes) * (scale_part // 4)
                        < row_words,
                    ),
                )

        @T.inline
        def copy(s):
            """The warp's unit s, on its way to the ring."""
            copy_rows(operands.weights[0], s, 0)
            copy_scales(operands.weights[0], s, 0)
            if count == 2:
                copy_rows(operands.weights[1], s, 8)
                copy_scales(operands.weights[1], s, 8)
            else:
                copy_rows(operands.weights[0], s, 8)
            commit_copies()
            codes_from[0] = codes_from[0] + T.Select(
                s % rounds == rounds - 1,
                T.int32(tiling.tile_words - (rounds - 1) * tiling.round_words),
                T.int32(tiling.round_words),
            )
            scales_from[0] = scales_from[0] + T.Select(
                s % rounds == rounds - 1,
                T.int32(tiling.tile_words - (rounds - 1) * tiling.round_scales),
                T.int32(tiling.round_scales),
            )

        @T.inline
        def start_copies():
            own[0] = tiling.ring + tx // 32 * depth * unit_values
            codes_from[0] = (begin + team * tile_outputs + lane // 8) * row_words + (share * UNIT + lane % 8) * 4
            scales_from[0] = (
                (begin + team * tile_outputs + lane // scale_lanes % tile_outputs) * row_words
                + tiling.offset
                + (share * scale_lanes + lane % scale_lanes) * (scale_part // 4)
            )
            # Rows of 128 bytes: of neighbours, the halves are exchanged in one, and reads have no bank conflicts.
            codes_to[0] = (lane // 8 * UNIT + T.bitwise_xor(lane % 8, lane // 8 % 2 * 4)) * vector_elements
            for i in T.unroll(2):
                reads[i] = (lane // 4 * UNIT + T.bitwise_xor(lane % 4 + i * 4, lane // 4 % 2 * 4)) * vector_elements
            for i in T.unroll(early):
                slot[0] = own[0] + i * unit_values
                copy(i)

        @T.inline
        def start_products():
            # A lane has its vector's activations if they are its column's, or else zeros.
            inputs_at[0] = T.Select(
                lane // 4 % 4 == lane % 4,
                share * unit_pieces + (lane // 16 * 4 + lane % 4) * piece,
                tiling.zeros,
            )
            inputs_step[0] = T.Select(lane // 4 % 4 == lane % 4, T.int32(split * unit_pieces), 0)
            # What a lane has of the sums: two vectors', of two outputs.
            vector_at[0] = share * UNIT + lane % 2 * 2
            scales_at[0] = unit_codes + lane // 4 * (tiling.scale_bytes // scale_size) + lane % 2 * 2 // group_vectors
            slot[0] = own[0]

        @T.inline
        def multiply_chunk(s, c):
            """totals += the products of a chunk of the warp's unit s, which is in the ring's `slot`."""
            for line in T.unroll(2):
                load_registers(
                    T.address_of(held[line * 4]),
                    T.address_of(shared[slot[0] + reads[c] + line * 8 * UNIT * vector_elements]),
                )
            for r in T.unroll(pieces):
                load_piece(
                    T.address_of(right[r * (piece * scale_size // 4)]),
                    T.address_of(shared[inputs_at[0] + (c * pieces + r) * 8 * piece]),
                )
            for v in T.vectorized(2):
                correction[v] = scratch[
                    tiling.corrections
                    + lane // 2 % 2 * chunks * 4
                    + vector_at[0]
                    + s % rounds * split * UNIT
                    + c * 4
                    + v
                ]
            for v in T.vectorized(2):
                factor[v] = scratch[tiling.factors + vector_at[0] + s % rounds * split * UNIT + c * 4 + v]
            for i in T.unroll(4):
                sums[i] = T.uint32(INTEGERS_BITS)
            multiply(T.address_of(sums[0]), T.address_of(held[0]), T.address_of(right[0]))
            for line in T.unroll(2):
                load_pair(
                    T.address_of(scales[0]),
                    T.address_of(
                        shared[
                            slot[0]
                            + scales_at[0]
                            + line * 8 * (tiling.scale_bytes // scale_size)
                            + c * 4 // group_vectors
                        ]
                    ),
                )
                for v in T.unroll(2):
                    totals[line] = totals[line] + scales[v] * (
                        (T.reinterpret("float32", sums[line * 2 + v]) - correction[v]) * factor[v]
                    )

        @T.inline
        def store_totals(s):
            """The team's share of a tile's outputs, upper and lower bytes added, into scratch."""
            for line in T.unroll(2):
                totals[line] = lane_sum(4)(totals[line] * T.Select(lane % 4 < 2, T.float32(UPPER), T.float32(1)))
            if lane % 4 == 0:
                for line in T.unroll(2):
                    o: T.let = (s // rounds * teams + team) * tile_outputs + line * 8 % tile_outputs + lane // 4
                    if o < block_outputs:
                        scratch[tiling.partial + (line * 8 // tile_outputs * block_outputs + o) * split + share] = (
                            totals[line]
                        )

        @T.inline
        def finish():
            """The outputs of the block, of all shares of the inputs."""
            for n in T.unroll(divide(block_outputs, THREADS)):
                o: T.let = n * THREADS + tx
                if begin + o < stop:
                    for w in T.unroll(count):
                        result[w] = T.float32(0)
                        for i in T.unroll(split):
                            result[w] = result[w] + scratch[tiling.partial + (w * block_outputs + o) * split + i]
                        if squares_rounds > 0:
                            result[w] = result[w] * squares[0]
                    epilogue.store(row, begin + o, result[0], result[count - 1], addends[n])

        # 1. Weights and parameters come from memory: that is a microsecond, which passes while the predecessor ends.
        start_copies()
        for n in T.unroll(divide(unit_pieces, THREADS)):
            if n * THREADS + tx < unit_pieces:
                shared[tiling.zeros + n * THREADS + tx] = tirx.const(0, layout.arithmetic)
        T.tvm_storage_sync("shared")
        if incoming is None:
            quantize.load_norm(operands, gains, shifts, tx)
        wait_for_predecessor()

        # 2. The activations, into shared memory.
        if incoming is None:
            quantize.load(operands, block, values)
        else:
            copy_incoming(operands.x, block)
            for k in T.unroll(squares_rounds):
                squares[k] = T.float32(0)
                if k * 32 + lane < incoming.squares:
                    squares[k] = T.reinterpret("float32", operands.x[row, incoming.floats(3) + k * 32 + lane])
        for n in T.unroll(divide(block_outputs, THREADS)):
            o: T.let = n * THREADS + tx
            if begin + o < stop:
                addends[n] = epilogue.addend(row, begin + o)
        if incoming is None:
            quantize.store(block, values, gains, shifts)
        for i in T.unroll(depth - early):
            slot[0] = own[0] + (early + i) * unit_values
            copy(early + i)
        if incoming is not None:
            wait_copies(depth - early)

        # 3. The products, unit by unit.
        start_products()
        for s in T.serial(steps, annotations={"disable_unroll": True}):
            if s % rounds == 0:
                for line in T.unroll(2):
                    totals[line] = T.float32(0)
            wait_copies(depth - 1)
            # What other lanes copied has arrived, and, below, has been read by them.
            keep_order()
            for c in T.unroll(unit_chunks):
                multiply_chunk(s, c)
            inputs_at[0] = T.Select(
                s % rounds == rounds - 1, inputs_at[0] - (rounds - 1) * inputs_step[0], inputs_at[0] + inputs_step[0]
            )
            keep_order()
            copy(s + depth)
            slot[0] = T.Select(slot[0] == own[0] + (depth - 1) * unit_values, own[0], slot[0] + unit_values)
            if s % rounds == rounds - 1:
                store_totals(s)

        # 4. Their sums, with the norm of quantized activations.
        if squares_rounds > 0:
            for k in T.unroll(squares_rounds - 1):
                squares[0] = squares[0] + squares[k + 1]
            squares[0] = T.float32(1) / T.sqrt(warp_sum(squares[0]) / T.float32(features) + T.float32(norm.eps))
        T.tvm_storage_sync("shared")
        finish()

    return GEMV(tiling.blocks, 1, tiling.shared, tiling.scratch, compute, block_outputs, tiling.first_output)
