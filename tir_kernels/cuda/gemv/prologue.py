"""What products of a few rows share, for CUDA: their shape, the norms before them, loads of weights."""

import math
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function, warp_sum
from gecko_mlc.tir_kernels.hardware import USUAL_SHARED_BYTES, divide

Expr = Any

THREADS, RESIDENT = 256, 2
WARPS = THREADS // 32
# Blocks that fill a large GPU.
BLOCKS = 264


class Norm(NamedTuple):
    """Group RMS norm, or `centred` group layer norm, of the activations."""

    groups: int
    eps: float
    centred: bool


# (registers, global source, present): 16 bytes that are read once, or nothing when the int is 0. A branch around it
# would cut the loop in pieces that are scheduled one by one. It is not `ld.global.nc`, which would not be before the
# wait for the predecessor: compilers move that past any barrier, to where its value is used.
load_stream = device_function(
    "gecko_load_stream",
    """
__device__ __forceinline__ void gecko_load_stream(unsigned* registers, const void* source, int present) {
#ifdef __CUDA_ARCH__
  asm volatile("{.reg .pred present; setp.ne.s32 present, %5, 0;"
               "@present ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(registers[0]), "+r"(registers[1]), "+r"(registers[2]), "+r"(registers[3])
               : "l"(source), "r"(present) : "memory");
#else
  if (present) memcpy(registers, source, 16);
#endif
}
""",
)


# The loads before stay before the loads after it: a compiler gathers them at the end of a loop, and none is on its way
# meanwhile.
keep_order = device_function(
    "gecko_keep_order",
    """
__device__ __forceinline__ void gecko_keep_order() { __syncwarp(); }
""",
)


class Product(NamedTuple):
    """Products with some matrices: the blocks for each, the rows of one, the buffers it needs in shared memory, how.

    `compute` is an inline (weight, second, x, b, row, gain, shift, block, matrix, shared, scratch, tx, addend, finish).
    It multiplies rows of x [b, K] fp32 from `row` on, normed if there is a norm, with the block's outputs of a weight
    [O, K], the number `matrix`, and of a second one if it has two. finish(i, o, value, second, addend(i, o)) stores
    output o of row i.

    Where `first_output` is known, a block has up to `most` outputs, from first_output(block, matrix) on.
    """

    blocks: list[int]
    rows: int
    shared: int
    scratch: int
    compute: Any
    most: int = 0
    first_output: Any = None


def shared_values(count: int, size: int, scratch: int) -> int:
    """Values of `size` bytes to have in dynamic shared memory for `count` of them, beside `scratch` fp32 that are not:
    TVM asks for more than the usual only for kernels whose dynamic part alone is more."""
    return count if count * size + 4 * scratch <= USUAL_SHARED_BYTES else max(count, USUAL_SHARED_BYTES // size)


def statistics(dim: int, rows: int, norm: Norm):  # type: ignore[no-untyped-def]
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


def normalize_whole(features: int, norm: Norm, count: int, split: int):  # type: ignore[no-untyped-def]
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
