"""The activations of a GEMV with quantized weights, for CUDA: quantized by every block, or copied where whoever made
them has quantized them."""

from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue, group_moments, normalize_row
from gecko_mlc.tir_kernels.cuda.gemv.quantized_tiling import Tiling
from gecko_mlc.tir_kernels.cuda.gemv.schedule import WARPS
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import commit_copies, copy_16_if
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_portion
from gecko_mlc.tir_kernels.hardware import divide


class Quantization(NamedTuple):
    """Inlines of a thread's activations, in the order that a kernel calls them.

    load_norm(operands, gains, shifts, tx): the norm's parameters, before the predecessor has ended.
    load(operands, block, values): the activations, with moments of groups into the block's scratch.
    store(block, values, gains, shifts): normed and quantized into the block's shared memory.
    """

    load_norm: Any
    load: Any
    store: Any


def quantization(features: int, tiling: Tiling, norm: NormPrologue | None) -> Quantization:
    """How the threads of each block norm and quantize a row of fp32."""
    part, size, portions = tiling.part, tiling.portion_size, tiling.portions
    single_group = norm is not None and norm.groups == 1
    compute_moments = group_moments(features, 1, norm) if norm is not None else None
    # Teams have the same rows: their sums are so many times as large.
    normalize = normalize_row(features * tiling.teams, norm, portions * size, WARPS) if norm is not None else None
    quantize_one = quantize_portion(tiling.layout)

    @T.inline
    def load_norm(operands, gains, shifts, tx):
        if norm is not None:
            for n in T.unroll(portions):
                for p in T.unroll(size // part):
                    k: T.let = tiling.first_input(n, tx) + p * part
                    if k < features:
                        for v in T.vectorized(part):
                            gains[n * size + p * part + v] = operands.gain(k + v)
                        for v in T.vectorized(part):
                            shifts[n * size + p * part + v] = operands.shift(k + v)

    @T.inline
    def load(operands, block, values):
        if norm is not None and not single_group:
            compute_moments(operands.x, operands.b, block.row, block.scratch, block.tx)
            T.tvm_storage_sync("shared")
        for n in T.unroll(portions):
            for p in T.unroll(size // part):
                k: T.let = tiling.first_input(n, block.tx) + p * part
                for v in T.vectorized(part):
                    values[n * size + p * part + v] = T.float32(0)
                if k < features:
                    for v in T.vectorized(part):
                        values[n * size + p * part + v] = operands.x[block.row, k + v]

    @T.inline
    def scale_and_shift(values, gains, shifts, scratch, tx):
        for n in T.unroll(portions):
            for p in T.unroll(size // part):
                if tiling.first_input(n, tx) + p * part < features:
                    for v in T.vectorized(part):
                        k: T.let = tiling.first_input(n, tx) + p * part + v
                        at: T.let = n * size + p * part + v
                        if not single_group:
                            values[at] = (values[at] - scratch[k // (features // norm.groups) * 2]) * scratch[
                                k // (features // norm.groups) * 2 + 1
                            ]
                        values[at] = values[at] * gains[at] + shifts[at]
                else:
                    for v in T.vectorized(part):
                        values[n * size + p * part + v] = T.float32(0)

    @T.inline
    def store(block, values, gains, shifts):
        tx = T.meta_var(block.tx)
        if single_group:
            normalize(values, lambda i: tiling.first_input(i // size, tx) + i % size < features, block.scratch, tx)
        if norm is not None:
            scale_and_shift(values, gains, shifts, block.scratch, tx)
        for n in T.unroll(portions):
            vector: T.let = tiling.vector(n, tx)

            @T.inline
            def keep(kind, value):
                block.scratch[tiling.corrections + kind * tiling.chunks * 4 + vector] = value

            quantize_one(
                values,
                n * size,
                T.address_of(block.shared[(vector // 4 * tiling.pieces * 8 + vector % 4) * tiling.piece]),
                tx % tiling.per_vector,
                vector < tiling.chunks * 4,
                keep,
            )

    return Quantization(load_norm, load, store)


def copy_activations(tiling: Tiling, incoming: QuantizedRow):  # type: ignore[no-untyped-def]
    """An inline (x, block): what a warp multiplies of a quantized row, on its way to the block's shared memory."""
    rounds, split, chunks = tiling.rounds, tiling.split, tiling.chunks
    # 16 bytes at a time: a unit's activations, and fp32 of a kind of a warp's units.
    unit_copies = tiling.unit_chunks * tiling.pieces * 8
    float_copies = rounds * tiling.unit_chunks

    @T.inline
    def copy(x, block):
        lane: T.let = block.tx % 32
        share: T.let = block.tx // 32 % split
        for n in T.unroll(divide(rounds * unit_copies, 32)):
            unit: T.let = (n * 32 + lane) // unit_copies * split + share
            place: T.let = unit * unit_copies + (n * 32 + lane) % unit_copies
            if n * 32 + lane < rounds * unit_copies:
                copy_16_if(
                    T.address_of(block.shared[place * tiling.piece]),
                    T.address_of(x[block.row, place * 4]),
                    T.Cast("int32", place < tiling.vectors * 2 * tiling.pieces),
                )
        for n in T.unroll(divide(3 * float_copies, 32)):
            kind: T.let = (n * 32 + lane) // float_copies
            within: T.let = (n * 32 + lane) % float_copies
            chunk: T.let = (within // tiling.unit_chunks * split + share) * tiling.unit_chunks + (
                within % tiling.unit_chunks
            )
            if n * 32 + lane < 3 * float_copies:
                copy_16_if(
                    T.address_of(block.scratch[tiling.corrections + (kind * chunks + chunk) * 4]),
                    T.address_of(x[block.row, incoming.floats(kind) + chunk * 4]),
                    T.Cast("int32", chunk * 4 < tiling.vectors),
                )
        commit_copies()

    return copy
