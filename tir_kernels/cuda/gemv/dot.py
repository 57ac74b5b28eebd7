"""Dot products of one row with dense weights, in fp32, for CUDA."""

import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemv.prologue import (
    BLOCKS,
    WARPS,
    Norm,
    Product,
    keep_order,
    load_stream,
    normalize_row,
    statistics,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import wait_for_predecessor, warp_sum, widen_vector
from gecko_mlc.tir_kernels.hardware import divide

Expr = Any

# 16-byte loads of a thread that are on their way, outputs of a block.
LOADS, OUTPUTS = 16, 16


def dot_gemv(features: int, extents: tuple[int, ...], dtype: str, weights: int, norm: Norm | None) -> Product:
    """One row, in fp32. `split` warps share an output; each lane keeps its inputs in registers for all outputs of the
    block, and is `LOADS` vectors of weights ahead."""
    size = 4 if dtype == "float32" else 2
    width = math.gcd(features, 16 // size)
    vectors = features // width
    split = min(WARPS, 1 << (divide(vectors, 32) - 1).bit_length())
    chunks = divide(vectors, 32 * split)
    teams = WARPS // split
    # Outputs of a team at a time; a small matrix gives every warp of the GPU something to do.
    together = max(1, min(LOADS // (chunks * weights), sum(extents) * weights // (BLOCKS * teams)))
    batches = max(1, OUTPUTS // (teams * together))
    count = batches * teams * together
    exact = vectors == chunks * 32 * split
    # Values that are widened at a time; registers of a vector: its bytes, or its values one by one.
    part = math.gcd(width, 4)
    parts = width // part
    streamed = width * size == 16
    registers = 4 if streamed else width
    widen = widen_vector(dtype)
    whole = norm is not None and norm.groups == 1
    compute_statistics = statistics(features, 1, norm) if norm is not None else None
    normalize = normalize_row(features, norm, chunks * width, split) if norm is not None else None

    def vector(tx: Expr, c: Expr) -> Expr:
        """The index of a thread's chunk of inputs."""
        return (tx // 32 % split * chunks + c) * 32 + tx % 32

    def present(tx: Expr, c: Expr) -> Expr:
        return tirx.const(True) if exact else vector(tx, c) < vectors

    # Partial sums [weights, outputs, split] come after the moments.
    partial = 2 * WARPS if whole else 2 * norm.groups if norm else 0

    @T.inline
    def widen_part(wide, held, at):
        if streamed:
            widen(T.address_of(wide[0]), T.address_of(held[at]))
        else:
            for v in T.unroll(part):
                wide[v] = held[at + v]

    @T.inline
    def compute(weight, second, x, b, row, gain, shift, block, matrix, shared, scratch, tx, addend, finish):
        held = T.alloc_buffer(
            (weights * together * chunks * registers,), "uint32" if streamed else "float32", scope="local"
        )
        incoming = T.alloc_buffer((chunks * width,), scope="local")
        wide = T.alloc_buffer((part,), scope="local")
        sums = T.alloc_buffer((weights * together,), scope="local")
        result = T.alloc_buffer((weights,), scope="local")
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split
        first: T.let = block * count
        end: T.let = extents[matrix]

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
            compute_statistics(x, b, row, scratch, tx)
            T.tvm_storage_sync("shared")
        for c in T.unroll(chunks):
            if present(tx, c):
                for p in T.unroll(parts):
                    for v in T.vectorized(part):
                        incoming[c * width + p * part + v] = x[row, vector(tx, c) * width + p * part + v]
        if whole:
            normalize(incoming, lambda i: present(tx, i // width), scratch, tx)
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
                        if streamed:
                            keep_order()
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
            finish(row, first + tx, result[0], result[weights - 1], addend(row, first + tx))

    return Product([divide(extent, count) for extent in extents], 1, 1, partial + weights * count * split, compute)
