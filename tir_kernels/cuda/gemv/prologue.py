"""The norm of activations before their product, for CUDA: in its prologue, as every block needs all of a row."""

import math
from typing import NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemv.schedule import WARPS
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_sum
from gecko_mlc.tir_kernels.hardware import divide


class NormPrologue(NamedTuple):
    """Group RMS norm, or `centred` group layer norm, of the activations."""

    groups: int
    eps: float
    centred: bool


def group_moments(dim: int, rows: int, norm: NormPrologue):  # type: ignore[no-untyped-def]
    """An inline (x, b, row, moments, tx): mean and 1 / sqrt(var + eps) of the rows' groups, one by each warp."""
    size = dim // norm.groups
    part = math.gcd(size, 4)
    # Vectors that a lane has on their way.
    loads = min(8, divide(size, part * 32))
    rounds = divide(size, part * 32 * loads)

    @T.inline
    def compute(x, b, row, moments, tx):
        values = T.alloc_buffer((loads, part), scope="local")
        mean = T.alloc_buffer((1,), scope="local")
        total = T.alloc_buffer((1,), scope="local")

        @T.inline
        def add(pair, power):
            total[0] = T.float32(0)
            for n in T.serial(rounds):
                for j in T.unroll(loads):
                    for v in T.vectorized(part):
                        values[j, v] = mean[0]
                    if ((n * loads + j) * 32 + tx % 32) * part < size:
                        for v in T.vectorized(part):
                            values[j, v] = x[
                                row + pair // norm.groups,
                                pair % norm.groups * size + ((n * loads + j) * 32 + tx % 32) * part + v,
                            ]
                for j in T.unroll(loads):
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


def normalize_row(features: int, norm: NormPrologue, count: int, split: int):  # type: ignore[no-untyped-def]
    """An inline (values [count], present, scratch [2·split], tx): a row that the threads of `split` warps hold becomes
    its normed values, of one group, without gain and shift. present(i): whether a thread's value i is of the row."""

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
    def normalize(values, present, scratch, tx):
        moments = T.alloc_buffer((2,), scope="local")
        total = T.alloc_buffer((1,), scope="local")
        moments[0] = T.float32(0)
        if norm.centred:
            total[0] = T.float32(0)
            for i in T.unroll(count):
                total[0] = total[0] + values[i]
            sum_block(total, scratch, 0, tx)
            moments[0] = total[0] / T.float32(features)
        total[0] = T.float32(0)
        for i in T.unroll(count):
            if present(i):
                total[0] = total[0] + (values[i] - moments[0]) * (values[i] - moments[0])
        sum_block(total, scratch, split, tx)
        moments[1] = T.float32(1) / T.sqrt(total[0] / T.float32(features) + T.float32(norm.eps))
        for i in T.unroll(count):
            values[i] = (values[i] - moments[0]) * moments[1]

    return normalize
