"""Products of several rows on the tensor cores, for CUDA."""

import math
from typing import Any

from gecko_mlc.tir_kernels.cuda.intrinsics import load_registers, multiply_accumulate, wait_for_predecessor
from gecko_mlc.tir_kernels.cuda.row_inputs import THREADS, WARPS, Norm, Product, load_stream, statistics
from gecko_mlc.tir_kernels.cuda.store import narrow
from gecko_mlc.tir_kernels.machine import USUAL_SHARED_BYTES, divide
from tvm.script import tirx as T

Expr = Any

# Inputs in shared memory at a time, outputs of a block.
DEPTH, OUTPUTS = 512, 32


def tensor_core_product(features: int, dtype: str, rows: int, weights: int, norm: Norm | None) -> Product:
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
    compute_statistics = statistics(features, rows, norm) if norm is not None else None
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
            compute_statistics(x, b, row, scratch, tx)
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
