"""The weighted sum of cached values that are int8 codes, on the tensor cores, for CUDA.

`mma` multiplies bytes: the weights of positions are rounded to integers of two bytes, in units of 2^-16 of the largest
one. A word of four codes is of adjacent columns of one position, so A is codes as they lie in memory, and B has the
weight of each position on a diagonal: product [row, n] is column n mod 4 of the row's words, by upper bytes, or by
lower ones for n ≥ 4.
"""

import functools
from typing import Any

from gecko_mlc.tir_kernels.cuda.attention_sums import THREADS, VECTORS, Columns, ValueSum
from gecko_mlc.tir_kernels.cuda.intrinsics import (
    commit_copies,
    device_function,
    load_registers_8,
    wait_copies,
    warp_maximum,
)
from gecko_mlc.tir_kernels.machine import divide
from gecko_mlc.tir_kernels.math import f32
from tvm import tirx
from tvm.script import tirx as T

Expr = Any

WARPS = THREADS // 32
# Codes of a vector.
WIDTH = 16
# Positions of a tile, two for each of the four lanes that share a row of A, and vectors of a position in it.
TILE, ROWS = 8, 8
# Units of the largest weight, and of the upper one of its two bytes.
LARGEST, UPPER = 2**16 - 1, 256
# Weights that are all below this are zero; its inverse is finite.
_TINY = 1e-30

# (weights[2] uint32, shared source): the bytes of two positions, each at the place of the lane's column of B.
_load_weights = device_function(
    "gecko_load_weights",
    """
__device__ __forceinline__ void gecko_load_weights(unsigned* weights, const void* source) {
  unsigned bytes = *static_cast<const unsigned short*>(source), shift = threadIdx.x / 4 % 4 * 4;
  weights[0] = __byte_perm(bytes, 0, 0x4444 - (4 << shift));
  weights[1] = __byte_perm(bytes, 0, 0x4444 - (3 << shift));
}
""",
)

# (sums[4] int32, codes[4] uint32, weights[2] uint32): sums += codes · weights, of 8 codes of two positions each.
_add_codes = device_function(
    "gecko_add_codes",
    """
__device__ __forceinline__ void gecko_add_codes(int* sums, const unsigned* codes, const unsigned* weights) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(codes[0]), "r"(codes[1]), "r"(codes[2]), "r"(codes[3]), "r"(weights[0]), "r"(weights[1]));
}
""",
)

# (values[4] fp32, sums[8] int32, unit): the sums of upper and of lower bytes, which are two lanes apart, as one: of
# columns 2·t, 2·t + 1 of each 8 of the vector, t = lane mod 4.
_join_sums = device_function(
    "gecko_join_sums",
    f"""
__device__ __forceinline__ void gecko_join_sums(float* values, const int* sums, float unit) {{
  bool upper = threadIdx.x % 4 < 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {{
    int first = sums[i / 2 * 4 + i % 2], second = sums[i / 2 * 4 + i % 2 + 2];
    int other = __shfl_xor_sync(0xffffffffu, upper ? second : first, 2);
    values[i] = unit * fmaf(static_cast<float>(upper ? first : other), {UPPER}.0f,
                            static_cast<float>(upper ? other : second));
  }}
}}
""",
)


@functools.cache
def codes_sum(value_size: int, longest: int) -> ValueSum:
    """Of codes in whole vectors, at most `longest` positions."""
    vectors = value_size // WIDTH
    warps = min(divide(vectors, ROWS), WARPS)
    # Vectors of a position that a thread holds at a time: they share their addresses and weights.
    together = min(divide(vectors, ROWS * warps), 2)
    apart = warps * ROWS
    threads, groups = warps * 32, WARPS // warps
    stages = VECTORS // (2 * together)
    # Whole tiles for all groups, which together divide the block's threads: no thread has more weights for it.
    padded = divide(longest, TILE * groups) * TILE * groups

    def half_at(half: Expr, thread: Expr) -> Expr:
        """Where the half is in a vector: 8 lanes begin with its end, or the 16 that read shared memory at a time would
        have half of its banks."""
        return T.bitwise_xor(half, thread // 8 % 2) * 8

    def first_column(i: Expr, r: Expr, thread: Expr) -> Expr:
        return ((i * together + r // 2) * apart + thread // 4) * WIDTH + half_at(r % 2, thread) + thread % 4 * 2

    def place(i: Expr, r: Expr, p: Expr, tx: Expr) -> Expr:
        """Where the thread holds vector r of its tile's position p."""
        return ((i % stages * together + r) * 2 + p) * (THREADS * WIDTH) + tx * WIDTH

    @T.inline
    def load(held, i, n, count, copy, tx):
        for p in T.unroll(2):
            for r in T.unroll(together):
                vector: T.let = (n * together + r) * apart + tx % threads // 4
                j: T.let = (i * groups + tx // threads) * TILE + tx % 4 * 2 + p
                copy(
                    T.address_of(held[place(i, r, p, tx)]),
                    j,
                    vector * WIDTH,
                    tirx.all(j < count, vector < vectors, tx < threads * groups),
                )

    @T.inline
    def begin(held, n, count, copy, tx):
        for i in T.unroll(stages):
            load(held, i, n, count, copy, tx)
            commit_copies()

    @T.inline
    def weigh(weights, unit, held_weights, tx):
        largest = T.alloc_buffer((WARPS,), scope="shared")
        maximum = T.alloc_buffer((1,), scope="local")
        steps = T.alloc_buffer((1,), scope="local")
        integer = T.alloc_buffer((1,), "int32", scope="local")
        maximum[0] = f32(_TINY)
        for k in T.unroll(divide(longest, THREADS)):
            maximum[0] = T.max(maximum[0], held_weights[k])
        maximum[0] = warp_maximum(maximum[0])
        if tx % 32 == 0:
            largest[tx // 32] = maximum[0]
        T.tvm_storage_sync("shared")
        for warp in T.unroll(WARPS):
            maximum[0] = T.max(maximum[0], largest[warp])
        steps[0] = f32(LARGEST) / maximum[0]
        unit[0] = maximum[0] / f32(LARGEST)
        for k in T.unroll(divide(longest, THREADS)):
            if k * THREADS + tx < padded:
                integer[0] = T.Cast("int32", T.nearbyint(held_weights[k] * steps[0]))
                weights[0, k * THREADS + tx] = T.Cast("uint8", integer[0] // UPPER)
                weights[1, k * THREADS + tx] = T.Cast("uint8", integer[0] % UPPER)
        T.tvm_storage_sync("shared")

    @T.inline
    def add(sums, held, weights, unit, n, count, copy, read, tx):
        products = T.alloc_buffer((8 * together,), "int32", scope="local")
        codes = T.alloc_buffer((4,), "uint32", scope="local")
        words = T.alloc_buffer((2,), "uint32", scope="local")
        if tx < threads * groups:
            for k in T.unroll(8 * together):
                products[k] = 0
            for i in T.serial(divide(count, TILE * groups)):
                wait_copies(stages - 1)
                _load_weights(
                    T.address_of(words[0]),
                    T.address_of(weights[tx % 32 // 16, (i * groups + tx // threads) * TILE + tx % 4 * 2]),
                )
                for r in T.unroll(together):
                    for half in T.unroll(2):
                        for p in T.unroll(2):
                            load_registers_8(
                                T.address_of(codes[p * 2]), T.address_of(held[place(i, r, p, tx) + half_at(half, tx)])
                            )
                        _add_codes(
                            T.address_of(products[r * 8 + half * 4]), T.address_of(codes[0]), T.address_of(words[0])
                        )
                # Most parts are not much longer than what was on its way from the begin.
                if (i + stages) * groups * TILE < count:
                    load(held, i + stages, n, count, copy, tx)
                commit_copies()
            for r in T.unroll(together):
                _join_sums(T.address_of(sums[r * 4]), T.address_of(products[r * 8]), unit[0])

    return ValueSum(
        Columns(threads, groups, divide(vectors, apart * together), 2 * together, 2, first_column),
        THREADS,
        THREADS * VECTORS * WIDTH,
        (2, padded),
        "uint8",
        begin,
        weigh,
        add,
    )
