"""GEMV of several rows on the tensor cores, for CUDA.

Warps along the inputs, each with all outputs of the block as rows of A and the activations as columns of B. A lane's
16 bytes of a row of weights are 8 numbers, or codes that numbers are made of 8 at a time, in registers.
"""

import math

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue, group_moments
from gecko_mlc.tir_kernels.cuda.gemv.schedule import GEMV, THREADS, WARPS, keep_order, load_stream, shared_elements
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import load_registers, multiply_accumulate, wait_for_predecessor
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.cuda.quantized.mma_fp16 import dequantize_pairs, store_activations
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import divide

# Outputs of a block.
OUTPUTS = 32


def mma_gemv(
    features: int, extents: tuple[int, ...], weights: WeightFormat, rows: int, count: int, norm: NormPrologue | None
) -> GEMV:
    """Up to `rows` rows with one or two weights of 16 bits or of codes. A slice of the activations is in shared memory
    at a time; a thread is `ahead` slices of weights ahead."""
    dense = isinstance(weights, Dense)
    dtype = weights.arithmetic
    tiles = divide(rows, 8)
    multiply, convert = multiply_accumulate(dtype), narrow(dtype)
    outputs = OUTPUTS // count
    # Inputs of a vector, the vectors of a row, a vector's numbers in memory.
    if dense:
        inputs, vectors, elements = 8, features // 8, 8
    else:
        inputs, vectors, elements = 4 * weights.codes_per_word, weights.scale_offset(features) // 4, 4
        group_vectors, scales = weights.words_per_group // 4, weights.scale_offset(features)
        make_weights, store = dequantize_pairs(weights), store_activations(weights)
    # A lane's halves of 16 outputs, and its vectors of each in a slice.
    lines, steps = OUTPUTS // 8, 2 if inputs <= 16 else 1
    ahead = 1 if dense else 2 // steps
    depth = WARPS * steps * 4 * inputs
    slices = divide(vectors * inputs, depth)
    # Rows of shared memory are 64 bytes apart modulo 128: reads of 16 bytes have no bank conflicts.
    stride = depth + 32
    # Activations are copied to shared memory in units, whose loads are of `part` values.
    unit = 4 if dense else weights.codes_per_word
    part = math.gcd(features, unit, 4)
    copies = divide(tiles * 8 * depth // unit, THREADS)
    loads = math.gcd(copies, max(1, 16 // unit))
    compute_moments = group_moments(features, rows, norm) if norm is not None else None
    moments = 2 * rows * norm.groups if norm else 0
    # Partial sums [WARPS, OUTPUTS, 8 rows and a gap] come after the moments.

    def scale_of(word: Expr, lane: Expr) -> Expr:
        """A lane's scale of the two in a word, as its lower half."""
        return T.shift_right(word, T.Cast("uint32", lane // group_vectors % 2 * 16))

    @T.inline
    def store_unit(shared, i, u, values, n):
        """The slice's unit u of row i. Four vectors' eighths are next to each other, as four lanes read them."""
        if dense:
            for v in T.vectorized(4):
                shared[i * stride + u * 4 + v] = convert(values[n, v])
        else:
            store(
                T.address_of(shared[i * stride + u // 16 * (4 * inputs) + u // 4 % 4 * 8]),
                u % 4,
                T.address_of(values[n, 0]),
            )

    @T.inline
    def load_activations(operands, block, start, values):
        x, row, tx = T.meta_var(operands.x), T.meta_var(block.row), T.meta_var(block.tx)
        shared, scratch = T.meta_var(block.shared), T.meta_var(block.scratch)
        for m in T.serial(copies // loads, annotations={"disable_unroll": True}):
            for n in T.unroll(loads):
                i: T.let = ((m * loads + n) * THREADS + tx) // (depth // unit)
                for p in T.unroll(unit // part):
                    k: T.let = start + ((m * loads + n) * THREADS + tx) % (depth // unit) * unit + p * part
                    for v in T.vectorized(part):
                        values[n, p * part + v] = T.float32(0)
                    if row + i < operands.b and k < features:
                        for v in T.vectorized(part):
                            values[n, p * part + v] = x[row + i, k + v]
                        if norm is not None:
                            for v in T.unroll(part):
                                pair: T.let = i * norm.groups + (k + v) // (features // norm.groups)
                                values[n, p * part + v] = (values[n, p * part + v] - scratch[pair * 2]) * scratch[
                                    pair * 2 + 1
                                ] * operands.gain(k + v) + operands.shift(k + v)
            for n in T.unroll(loads):
                place: T.let = (m * loads + n) * THREADS + tx
                store_unit(shared, place // (depth // unit), place % (depth // unit), values, n)

    @T.inline
    def compute(operands, block, epilogue):
        row, tx = T.meta_var(block.row), T.meta_var(block.tx)
        shared, scratch = T.meta_var(block.shared), T.meta_var(block.scratch)
        held = T.alloc_buffer((ahead * lines * steps * 4,), "uint32", scope="local")
        scale = T.alloc_buffer((ahead * lines * steps,), "uint32", scope="local")
        numbers = T.alloc_buffer((8,), "uint32", scope="local")
        left = T.alloc_buffer((4,), "uint32", scope="local")
        right = T.alloc_buffer((tiles * 4,), "uint32", scope="local")
        values = T.alloc_buffer((loads, unit), scope="local")
        sums = T.alloc_buffer((lines // 2 * tiles * 4,), scope="local")
        result = T.alloc_buffer((count,), scope="local")
        lane: T.let = tx % 32
        warp: T.let = tx // 32
        first: T.let = block.index * outputs

        @T.inline
        def load_line(source, o, vector, at):
            load_stream(
                T.address_of(held[at * 4]),
                T.address_of(source[o, vector * elements]),
                T.Cast("int32", vector < vectors),
            )
            if not dense:
                scale[at] = T.uint32(0)
                if vector < vectors:
                    scale[at] = source[o, scales + vector // group_vectors // 2]

        @T.inline
        def load(s, a, j):
            vector: T.let = (s * WARPS + warp) * steps * 4 + j * 4 + lane % 4
            for line in T.unroll(lines // count):
                o: T.let = T.min(first + line * 8 + lane // 4, extents[block.matrix] - 1)
                load_line(operands.weights[0], o, vector, (a * lines + line) * steps + j)
                if count == 2:
                    load_line(operands.weights[1], o, vector, (a * lines + lines // 2 + line) * steps + j)

        @T.inline
        def make_numbers(at, line, chunk):
            if dense:
                for i in T.unroll(4):
                    numbers[line * 4 + i] = held[at * 4 + i]
            else:
                make_weights(
                    T.address_of(numbers[line * 4]), T.address_of(held[at * 4]), chunk, scale_of(scale[at], lane)
                )

        for j in T.unroll(ahead * lines * steps * 4):
            held[j] = T.uint32(0)
        for a in T.unroll(ahead):
            for j in T.unroll(steps):
                load(a, a, j)
        for j in T.unroll(lines // 2 * tiles * 4):
            sums[j] = T.float32(0)
        wait_for_predecessor()
        if norm is not None:
            compute_moments(operands.x, operands.b, row, scratch, tx)
        for s in T.serial(divide(slices, ahead)):
            for a in T.unroll(ahead):
                T.tvm_storage_sync("shared")
                load_activations(operands, block, (s * ahead + a) * depth, values)
                T.tvm_storage_sync("shared")
                for j in T.unroll(steps):
                    for chunk in T.unroll(inputs // 8):
                        # Which of the inputs that four lanes have is which is free: a lane's are those of its vector.
                        for n in T.unroll(tiles):
                            load_registers(
                                T.address_of(right[n * 4]),
                                T.address_of(
                                    shared[
                                        (n * 8 + lane // 4) * stride
                                        + (warp * steps + j) * 4 * inputs
                                        + chunk * 32
                                        + lane % 4 * 8
                                    ]
                                ),
                            )
                        for m in T.unroll(lines // 2):
                            for line in T.unroll(2):
                                make_numbers((a * lines + m * 2 + line) * steps + j, line, chunk)
                            for half in T.unroll(2):
                                for i in T.unroll(4):
                                    left[i] = numbers[i % 2 * 4 + half * 2 + i // 2]
                                for n in T.unroll(tiles):
                                    multiply(
                                        T.address_of(sums[(m * tiles + n) * 4]),
                                        T.address_of(left[0]),
                                        T.address_of(right[n * 4 + half * 2]),
                                    )
                    load((s + 1) * ahead + a, a, j)
                    keep_order()
        i: T.let = tx // outputs
        o: T.let = tx % outputs
        for n in T.unroll(tiles):
            if n > 0:
                T.tvm_storage_sync("shared")
            for m in T.unroll(lines // 2):
                for v in T.unroll(4):
                    scratch[moments + (warp * OUTPUTS + m * 16 + v // 2 * 8 + lane // 4) * 9 + lane % 4 * 2 + v % 2] = (
                        sums[(m * tiles + n) * 4 + v]
                    )
            T.tvm_storage_sync("shared")
            if i < 8 and row + n * 8 + i < operands.b and first + o < extents[block.matrix]:
                for w in T.unroll(count):
                    result[w] = T.float32(0)
                    for k in T.unroll(WARPS):
                        result[w] = result[w] + scratch[moments + (k * OUTPUTS + w * outputs + o) * 9 + i]
                epilogue.store(
                    row + n * 8 + i,
                    first + o,
                    result[0],
                    result[count - 1],
                    epilogue.addend(row + n * 8 + i, first + o),
                )

    scratch = moments + WARPS * OUTPUTS * 9
    blocks = [divide(extent, outputs) for extent in extents]
    return GEMV(blocks, rows, shared_elements(tiles * 8 * stride, 2, scratch), scratch, compute)
