"""GEMV with dense count: dot products of one row in fp32, for CUDA."""

import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue, group_moments, normalize_row
from gecko_mlc.tir_kernels.cuda.gemv.schedule import BLOCKS, GEMV, WARPS, keep_order, load_stream
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import wait_for_predecessor, warp_sum, widen_vector
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import divide

# 16-byte loads of a thread that are on their way, outputs of a block.
LOADS, OUTPUTS = 16, 16


def dot_gemv(features: int, extents: tuple[int, ...], dtype: str, count: int, norm: NormPrologue | None) -> GEMV:
    """One row, in fp32. `split` warps share an output; each lane keeps its inputs in registers for all outputs of the
    block, and is `LOADS` vectors of weights ahead."""
    size = 4 if dtype == "float32" else 2
    width = math.gcd(features, 16 // size)
    vectors = features // width
    split = min(WARPS, 1 << (divide(vectors, 32) - 1).bit_length())
    chunks = divide(vectors, 32 * split)
    teams = WARPS // split
    # Outputs of a team of warps at a time; a small matrix gives every warp of the GPU something to do.
    outputs = max(1, min(LOADS // (chunks * count), sum(extents) * count // (BLOCKS * teams)))
    batches = max(1, OUTPUTS // (teams * outputs))
    block_outputs = batches * teams * outputs
    exact = vectors == chunks * 32 * split
    # Values that are widened at a time; registers of a vector: its bytes, or its values one by one.
    part = math.gcd(width, 4)
    parts = width // part
    streamed = width * size == 16
    registers = 4 if streamed else width
    widen = widen_vector(dtype)
    single_group = norm is not None and norm.groups == 1
    compute_moments = group_moments(features, 1, norm) if norm is not None else None
    normalize = normalize_row(features, norm, chunks * width, split) if norm is not None else None

    def vector(tx: Expr, c: Expr) -> Expr:
        """The index of a thread's chunk of inputs."""
        return (tx // 32 % split * chunks + c) * 32 + tx % 32

    def present(tx: Expr, c: Expr) -> Expr:
        return tirx.const(True) if exact else vector(tx, c) < vectors

    # Partial sums [count, outputs, split] come after the moments.
    partial = 2 * WARPS if single_group else 2 * norm.groups if norm else 0

    @T.inline
    def widen_part(wide, held, at):
        if streamed:
            widen(T.address_of(wide[0]), T.address_of(held[at]))
        else:
            for v in T.unroll(part):
                wide[v] = held[at + v]

    @T.inline
    def compute(operands, block, epilogue):
        x, row = T.meta_var(operands.x), T.meta_var(block.row)
        tx, scratch = T.meta_var(block.tx), T.meta_var(block.scratch)
        held = T.alloc_buffer(
            (count * outputs * chunks * registers,), "uint32" if streamed else "float32", scope="local"
        )
        incoming = T.alloc_buffer((chunks * width,), scope="local")
        wide = T.alloc_buffer((part,), scope="local")
        sums = T.alloc_buffer((count * outputs,), scope="local")
        result = T.alloc_buffer((count,), scope="local")
        share: T.let = tx // 32 % split
        team: T.let = tx // 32 // split
        first: T.let = block.index * block_outputs
        end: T.let = extents[block.matrix]

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
            o: T.let = first + (batch * teams + team) * outputs + r
            wanted: T.let = tirx.all(batch < batches, o < end, present(tx, c))
            at: T.let = ((w * outputs + r) * chunks + c) * registers
            if w == 0:
                load_vector(operands.weights[0], T.min(o, end - 1), c, wanted, at)
            else:
                load_vector(operands.weights[-1], T.min(o, end - 1), c, wanted, at)

        for i in T.unroll(count * outputs * chunks * registers):
            held[i] = tirx.const(0, "uint32" if streamed else "float32")
        for w in T.unroll(count):
            for r in T.unroll(outputs):
                for c in T.unroll(chunks):
                    load(0, w, r, c)
        for i in T.unroll(chunks * width):
            incoming[i] = T.float32(0)
        wait_for_predecessor()
        if norm is not None and not single_group:
            compute_moments(x, operands.b, row, scratch, tx)
            T.tvm_storage_sync("shared")
        for c in T.unroll(chunks):
            if present(tx, c):
                for p in T.unroll(parts):
                    for v in T.vectorized(part):
                        incoming[c * width + p * part + v] = x[row, vector(tx, c) * width + p * part + v]
        if single_group:
            normalize(incoming, lambda i: present(tx, i // width), scratch, tx)
        if norm is not None:
            for c in T.unroll(chunks):
                if present(tx, c):
                    for p in T.unroll(parts):
                        for v in T.vectorized(part):
                            k: T.let = vector(tx, c) * width + p * part + v
                            if not single_group:
                                incoming[c * width + p * part + v] = (
                                    incoming[c * width + p * part + v] - scratch[k // (features // norm.groups) * 2]
                                ) * scratch[k // (features // norm.groups) * 2 + 1]
                            incoming[c * width + p * part + v] = incoming[c * width + p * part + v] * operands.gain(
                                k
                            ) + operands.shift(k)
        for n in T.serial(batches, annotations={"disable_unroll": True}):
            for w in T.unroll(count):
                for r in T.unroll(outputs):
                    sums[w * outputs + r] = T.float32(0)
                    for c in T.unroll(chunks):
                        for p in T.unroll(parts):
                            widen_part(
                                wide,
                                held,
                                ((w * outputs + r) * chunks + c) * registers + p * (registers // parts),
                            )
                            for v in T.unroll(part):
                                sums[w * outputs + r] = (
                                    sums[w * outputs + r] + wide[v] * incoming[c * width + p * part + v]
                                )
                        load(n + 1, w, r, c)
                        if streamed:
                            keep_order()
            for j in T.unroll(count * outputs):
                sums[j] = warp_sum(sums[j])
            if tx % 32 == 0:
                for w in T.unroll(count):
                    for r in T.unroll(outputs):
                        scratch[partial + (w * block_outputs + (n * teams + team) * outputs + r) * split + share] = (
                            sums[w * outputs + r]
                        )
        T.tvm_storage_sync("shared")
        if tx < block_outputs and first + tx < end:
            for w in T.unroll(count):
                result[w] = T.float32(0)
                for i in T.unroll(split):
                    result[w] = result[w] + scratch[partial + (w * block_outputs + tx) * split + i]
            epilogue.store(row, first + tx, result[0], result[count - 1], epilogue.addend(row, first + tx))

    scratch = partial + count * block_outputs * split
    return GEMV([divide(extent, block_outputs) for extent in extents], 1, 1, scratch, compute)
