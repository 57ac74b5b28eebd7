"""Matrix products of a few rows with the norms before them, for CUDA.

They are bound by the memory's bandwidth: every weight is read once, past the L1 cache, and several 16-byte loads of
each thread are on their way all the time, the first before the predecessor has ended. One row is dot products in
fp32 (`_dot_product`), several rows of 16-bit weights go through the tensor cores (`_tensor_core_product`).
"""

import math
from typing import Any, NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import (
    device_function,
    load_registers,
    multiply_accumulate,
    wait_for_predecessor,
    warp_sum,
    widen_vector,
)
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.machine import USUAL_SHARED_BYTES, divide
from tvm import tirx
from tvm.script import tirx as T

Expr = Any

THREADS = 256
WARPS = THREADS // 32
# Blocks that fill a large GPU.
BLOCKS = 264
# Of dot products: 16-byte loads of a thread that are on their way, inputs that a lane can hold, outputs of a block.
LOADS, MOST_INPUTS, ROW_OUTPUTS = 16, 64, 16
# On the tensor cores: inputs in shared memory at a time, outputs of a block.
DEPTH, OUTPUTS = 512, 32


class Norm(NamedTuple):
    """Group RMS norm, or `centred` group layer norm, of the activations."""

    groups: int
    eps: float
    centred: bool


# (registers, global source, present): 16 bytes that are read once, or nothing when the int is 0. A branch around it
# would cut the loop in pieces that are scheduled one by one.
load_stream = device_function(
    "gecko_load_stream",
    """
__device__ __forceinline__ void gecko_load_stream(unsigned* registers, const void* source, int present) {
#ifdef __CUDA_ARCH__
  asm volatile("{.reg .pred present; setp.ne.s32 present, %5, 0;"
               "@present ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(registers[0]), "+r"(registers[1]), "+r"(registers[2]), "+r"(registers[3])
               : "l"(source), "r"(present));
#else
  if (present) memcpy(registers, source, 16);
#endif
}
""",
)


class Product(NamedTuple):
    """A block's matrix product: the outputs and rows it computes, the buffers it needs in shared memory, how.

    `compute` is an inline (weight, second, x, b, row, gain, shift, first, end, shared, scratch, tx, finish). It
    multiplies rows of x [b, K] fp32 from `row` on, normed if there is a norm, with the outputs from `first` to before
    `end` of a weight [O, K], and of a second one if it has two. finish(i, o, value, second) stores output o of row i.
    """

    outputs: int
    rows: int
    shared: int
    scratch: int
    compute: Any


def row_product(
    features: int, outputs: int, dtype: str, rows: int, weights: int = 1, norm: Norm | None = None
) -> Product:
    """The product for up to `rows` rows with one or two weights [outputs, features]."""
    if rows > 1 and dtype != "float32" and features % 8 == 0:
        return _tensor_core_product(features, dtype, rows, weights, norm)
    return _dot_product(features, outputs, dtype, weights, norm)


def _statistics(dim: int, rows: int, norm: Norm):  # type: ignore[no-untyped-def]
    """An inline (x, b, row, moments, tx): mean and 1 / sqrt(var + eps) of the rows' groups, one by each warp."""
    size = dim // norm.groups
    part = math.gcd(size, 4)
    together = min(8, divide(size, part * 32))
    rounds = divide(size, part * 32 * together)

    @T.inline
    def compute(x, b, row, moments, tx):
        values = T.alloc_buffer((together, part), scope="local")
        mean = T.alloc_buffer((1,), scope="local")
        total = T.alloc_buffer((1,), scope="local")

        @T.inline
        def add(pair, power):
            total[0] = T.float32(0)
            for n in T.serial(rounds):
                for j in T.unroll(together):
                    for v in T.vectorized(part):
                        values[j, v] = mean[0]
                    if ((n * together + j) * 32 + tx % 32) * part < size:
                        for v in T.vectorized(part):
                            values[j, v] = x[
                                row + pair // norm.groups,
                                pair % norm.groups * size + ((n * together + j) * 32 + tx % 32) * part + v,
                            ]
                for j in T.unroll(together):
                    for v in T.unroll(part):
                        if power == 2:
                            total[0] = total[0] + (values[j, v] - mean[0]) * (values[j, v] - mean[0])
                        else:
                            total[0] = total[0] + values[j, v]
            total[0] = warp_sum(total[0])

        for n in T.serial(divide(rows * norm.groups, WARPS)):
            pair: T.let = n * WARPS + tx // 32
            if pair < rows * norm.groups and row + pair // norm.groups < b:
                mean[0] = T.float32(0)
                if norm.centred:
                    add(pair, 1)
                    mean[0] = total[0] / T.float32(size)
                add(pair, 2)
                if tx % 32 == 0:
                    moments[pair * 2] = mean[0]
                    moments[pair * 2 + 1] = T.float32(1) / T.sqrt(total[0] / T.float32(size) + T.float32(norm.eps))

    return compute


def _dot_product(features: int, outputs: int, dtype: str, weights: int, norm: Norm | None) -> Product:
    """One row, in fp32. `split` warps share an output; each lane keeps its inputs in registers for all outputs of the
    block, and is `LOADS` vectors of weights ahead."""
    size = 4 if dtype == "float32" else 2
    width = math.gcd(features, 16 // size)
    vectors = features // width
    split = min(WARPS, 1 << (divide(vectors, 32) - 1).bit_length())
    chunks = divide(vectors, 32 * split)
    if chunks * width > MOST_INPUTS:
        raise ValueError(f"{features} inputs of a matrix: at most {MOST_INPUTS * 32 * WARPS} can be decoded with CUDA")
    teams = WARPS // split
    # Outputs of a team at a time; a small matrix gives every warp of the GPU something to do.
    together = max(1, min(LOADS // (chunks * weights), outputs // (BLOCKS * teams)))
    batches = max(1, ROW_OUTPUTS // (teams * together))
    count = batches * teams * together
    exact = vectors == chunks * 32 * split
    # Values that are widened at a time; registers of a vector: its bytes, or its values one by one.
    part = math.gcd(width, 4)
    parts = width // part
    streamed = width * size == 16
    registers = 4 if streamed else width
    widen = widen_vector(dtype)
    whole = norm is not None and norm.groups == 1
    statistics = _statistics(features, 1, norm) if norm is not None else None

    def vector(tx: Expr, c: Expr) -> Expr:
        """The index of a thread's chunk of inputs."""
        return (tx // 32 % split * chunks + c) * 32 + tx % 32

    def present(tx: Expr, c: Expr) -> Expr:
        return tirx.const(True) if exact else vector(tx, c) < vectors

    # Partial sums [weights, outputs, split] come after the moments.
    partial = 2 * WARPS if whole else 2 * norm.groups if norm else 0

    @T.inline
    def sum_block(total, scratch, first, tx):
        total[0] = warp_sum(total[0])
        if tx % 32 == 0:
            scratch[first + tx // 32] = total[0]
        T.tvm_storage_sync("shared")
        total[0] = T.float32(0)
        for warp in T.unroll(split):
            total[0] = total[0] + scratch[first + warp]

    @T.inline
    def normalize_whole(incoming, scratch, tx):
        """What each of the first `split` warps has of the row becomes its normed values, without gain and shift."""
        moments = T.alloc_buffer((2,), scope="local")
        total = T.alloc_buffer((1,), scope="local")
        moments[0] = T.float32(0)
        if norm.centred:
            total[0] = T.float32(0)
            for i in T.unroll(chunks * width):
                total[0] = total[0] + incoming[i]
            sum_block(total, scratch, 0, tx)
            moments[0] = total[0] / T.float32(features)
        total[0] = T.float32(0)
        for c in T.unroll(chunks):
            if present(tx, c):
                for i in T.unroll(width):
                    total[0] = total[0] + (incoming[c * width + i] - moments[0]) * (
                        incoming[c * width + i] - moments[0]
                    )
        sum_block(total, scratch, WARPS, tx)
        moments[1] = T.float32(1) / T.sqrt(total[0] / T.float32(features) + T.float32(norm.eps))
        for i in T.unroll(chunks * width):
            incoming[i] = (incoming[i] - moments[0]) * moments[1]

    @T.inline
    def widen_part(wide, held, at):
        if streamed:
            widen(T.address_of(wide[0]), T.address_of(held[at]))
        else:
            for v in T.unroll(part):
                wide[v] = held[at + v]

    @T.inline
    def compute(weight, second, x, b, row, gain, shift, first, end, shared, scratch, tx, finish):
        held = T.alloc_buffer(
            (weights * together * chunks * registers,), "uint32" if streamed else "float32", scope="local"
        )
        incoming = T.alloc_buffer((chunks * width,), scope="local")
        wide = T.alloc_buffer((part,), scope="local")
        sums = T.alloc_buffer((weights * together,), scope="local")
        result = T.alloc_buffer((weights,), scope="local")
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split

        @T.inline
        def load_vector(source, o, c, wanted, at):
            if streamed:
                load_stream(
                    T.address_of(held[at]),
                    T.address_of(source[o, T.min(vector(tx, c), vectors - 1) * width]),
                    T.Cast("int32", wanted),
                )
            else:
                if wanted:
                    for v in T.vectorized(width):
                        held[at + v] = T.Cast("float32", source[o, vector(tx, c) * width + v])

        @T.inline
        def load(batch, w, r, c):
            o: T.let = first + (batch * teams + team) * together + r
            wanted: T.let = tirx.all(batch < batches, o < end, present(tx, c))
            at: T.let = ((w * together + r) * chunks + c) * registers
            if w == 0:
                load_vector(weight, T.min(o, end - 1), c, wanted, at)
            else:
                load_vector(second, T.min(o, end - 1), c, wanted, at)

        for i in T.unroll(weights * together * chunks * registers):
            held[i] = tirx.const(0, "uint32" if streamed else "float32")
        for w in T.unroll(weights):
            for r in T.unroll(together):
                for c in T.unroll(chunks):
                    load(0, w, r, c)
        for i in T.unroll(chunks * width):
            incoming[i] = T.float32(0)
        wait_for_predecessor()
        if norm is not None and not whole:
            statistics(x, b, row, scratch, tx)
            T.tvm_storage_sync("shared")
        for c in T.unroll(chunks):
            if present(tx, c):
                for p in T.unroll(parts):
                    for v in T.vectorized(part):
                        incoming[c * width + p * part + v] = x[row, vector(tx, c) * width + p * part + v]
        if whole:
            normalize_whole(incoming, scratch, tx)
        if norm is not None:
            for c in T.unroll(chunks):
                if present(tx, c):
                    for p in T.unroll(parts):
                        for v in T.vectorized(part):
                            k: T.let = vector(tx, c) * width + p * part + v
                            if not whole:
                                incoming[c * width + p * part + v] = (
                                    incoming[c * width + p * part + v] - scratch[k // (features // norm.groups) * 2]
                                ) * scratch[k // (features // norm.groups) * 2 + 1]
                            incoming[c * width + p * part + v] = incoming[c * width + p * part + v] * gain(k) + shift(k)
        for n in T.serial(batches, annotations={"disable_unroll": True}):
            for w in T.unroll(weights):
                for r in T.unroll(together):
                    sums[w * together + r] = T.float32(0)
                    for c in T.unroll(chunks):
                        for p in T.unroll(parts):
                            widen_part(
                                wide, held, ((w * together + r) * chunks + c) * registers + p * (registers // parts)
                            )
                            for v in T.unroll(part):
                                sums[w * together + r] = (
                                    sums[w * together + r] + wide[v] * incoming[c * width + p * part + v]
                                )
                        load(n + 1, w, r, c)
            for j in T.unroll(weights * together):
                sums[j] = warp_sum(sums[j])
            if tx % 32 == 0:
                for w in T.unroll(weights):
                    for r in T.unroll(together):
                        scratch[partial + (w * count + (n * teams + team) * together + r) * split + share] = sums[
                            w * together + r
                        ]
        T.tvm_storage_sync("shared")
        if tx < count and first + tx < end:
            for w in T.unroll(weights):
                result[w] = T.float32(0)
                for i in T.unroll(split):
                    result[w] = result[w] + scratch[partial + (w * count + tx) * split + i]
            finish(row, first + tx, result[0], result[weights - 1])

    return Product(count, 1, 1, partial + weights * count * split, compute)


def _tensor_core_product(features: int, dtype: str, rows: int, weights: int, norm: Norm | None) -> Product:
    """Warps along the inputs, each with all outputs of the block as rows of A and the activations as columns of B."""
    tiles = divide(rows, 8)
    multiply, convert = multiply_accumulate(dtype), narrow(dtype)
    outputs = OUTPUTS // weights
    vectors, slices = features // 8, divide(features, DEPTH)
    # A lane's halves of 16 outputs, and its steps of 32 inputs in a slice.
    lines, steps = OUTPUTS // 8, DEPTH // (32 * WARPS)
    # Rows of shared memory are 64 bytes apart modulo 128: reads of 16 bytes have no bank conflicts.
    stride = DEPTH + 32
    copies = divide(tiles * 8 * DEPTH // 4, THREADS)
    together = math.gcd(copies, 4)
    statistics = _statistics(features, rows, norm) if norm is not None else None
    moments = 2 * rows * norm.groups if norm else 0
    # Partial sums [WARPS, OUTPUTS, columns + 1] come after the moments.
    columns = tiles * 8 + 1

    @T.inline
    def load_activations(x, b, row, start, shared, scratch, gain, shift, values, tx):
        for m in T.serial(copies // together):
            for n in T.unroll(together):
                i: T.let = ((m * together + n) * THREADS + tx) // (DEPTH // 4)
                k: T.let = start + ((m * together + n) * THREADS + tx) % (DEPTH // 4) * 4
                for v in T.vectorized(4):
                    values[n, v] = T.float32(0)
                if row + i < b and k < features:
                    for v in T.vectorized(4):
                        values[n, v] = x[row + i, k + v]
                    if norm is not None:
                        for v in T.unroll(4):
                            pair: T.let = i * norm.groups + (k + v) // (features // norm.groups)
                            values[n, v] = (values[n, v] - scratch[pair * 2]) * scratch[pair * 2 + 1] * gain(
                                k + v
                            ) + shift(k + v)
            for n in T.unroll(together):
                i: T.let = ((m * together + n) * THREADS + tx) // (DEPTH // 4)
                k: T.let = ((m * together + n) * THREADS + tx) % (DEPTH // 4) * 4
                for v in T.vectorized(4):
                    shared[i * stride + k + v] = convert(values[n, v])

    @T.inline
    def compute(weight, second, x, b, row, gain, shift, first, end, shared, scratch, tx, finish):
        held = T.alloc_buffer((lines * steps * 4,), "uint32", scope="local")
        left = T.alloc_buffer((4,), "uint32", scope="local")
        right = T.alloc_buffer((tiles * 4,), "uint32", scope="local")
        values = T.alloc_buffer((together, 4), scope="local")
        sums = T.alloc_buffer((lines // 2 * tiles * 4,), scope="local")
        result = T.alloc_buffer((weights,), scope="local")
        lane: T.let = tx % 32
        warp: T.let = tx // 32

        @T.inline
        def load(s, j):
            vector: T.let = s * (DEPTH // 8) + (warp * steps + j) * 4 + lane % 4
            present: T.let = T.Cast("int32", vector < vectors)
            for line in T.unroll(lines // weights):
                o: T.let = T.min(first + line * 8 + lane // 4, end - 1)
                load_stream(T.address_of(held[(line * steps + j) * 4]), T.address_of(weight[o, vector * 8]), present)
                if weights == 2:
                    load_stream(
                        T.address_of(held[((lines // 2 + line) * steps + j) * 4]),
                        T.address_of(second[o, vector * 8]),
                        present,
                    )

        for j in T.unroll(lines * steps * 4):
            held[j] = T.uint32(0)
        for j in T.unroll(steps):
            load(0, j)
        for j in T.unroll(lines // 2 * tiles * 4):
            sums[j] = T.float32(0)
        wait_for_predecessor()
        if norm is not None:
            statistics(x, b, row, scratch, tx)
        for s in T.serial(slices):
            T.tvm_storage_sync("shared")
            load_activations(x, b, row, s * DEPTH, shared, scratch, gain, shift, values, tx)
            T.tvm_storage_sync("shared")
            for j in T.unroll(steps):
                # Which of the 32 inputs is which is free: a lane's 8 are those of its 16 bytes.
                for n in T.unroll(tiles):
                    load_registers(
                        T.address_of(right[n * 4]),
                        T.address_of(shared[(n * 8 + lane // 4) * stride + (warp * steps + j) * 32 + lane % 4 * 8]),
                    )
                for m in T.unroll(lines // 2):
                    for half in T.unroll(2):
                        for i in T.unroll(4):
                            left[i] = held[((m * 2 + i % 2) * steps + j) * 4 + half * 2 + i // 2]
                        for n in T.unroll(tiles):
                            multiply(
                                T.address_of(sums[(m * tiles + n) * 4]),
                                T.address_of(left[0]),
                                T.address_of(right[n * 4 + half * 2]),
                            )
                load(s + 1, j)
        for m in T.unroll(lines // 2):
            for n in T.unroll(tiles):
                for i in T.unroll(4):
                    scratch[
                        moments
                        + (warp * OUTPUTS + m * 16 + i // 2 * 8 + lane // 4) * columns
                        + n * 8
                        + lane % 4 * 2
                        + i % 2
                    ] = sums[(m * tiles + n) * 4 + i]
        T.tvm_storage_sync("shared")
        for n in T.serial(divide(tiles * 8 * outputs, THREADS)):
            i: T.let = (n * THREADS + tx) // outputs
            o: T.let = (n * THREADS + tx) % outputs
            if row + i < b and i < tiles * 8 and first + o < end:
                for w in T.unroll(weights):
                    result[w] = T.float32(0)
                    for k in T.unroll(WARPS):
                        result[w] = result[w] + scratch[moments + (k * OUTPUTS + w * outputs + o) * columns + i]
                finish(row + i, first + o, result[0], result[weights - 1])

    scratch = moments + WARPS * OUTPUTS * columns
    shared = tiles * 8 * stride
    if 2 * shared + 4 * scratch > USUAL_SHARED_BYTES:
        # TVM asks for more only for kernels whose dynamic part alone is as large.
        shared = max(shared, USUAL_SHARED_BYTES // 2)
    return Product(outputs, rows, shared, scratch, compute)
