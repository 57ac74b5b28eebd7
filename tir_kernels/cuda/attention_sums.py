"""The weighted sum of cached values in the attention of a decoded token, for CUDA.

A thread has vectors of a few positions on their way and adds them up in fp32. `attention_codes` has the same for codes
in whole vectors of 16 bytes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import commit_copies, load_registers, wait_copies, widen_vector
from gecko_mlc.tir_kernels.machine import divide
from tvm import DataType, tirx
from tvm.script import tirx as T

Expr = Any

THREADS = 256
# Vectors of 16 bytes that a thread has on their way at a time.
VECTORS = 16


class Columns(NamedTuple):
    """How a block's threads share the columns of a head's values.

    `threads` of them hold a row in `passes`, a thread `runs` runs of `run` adjacent columns at a time; `groups` of so
    many threads take positions in turn. first(n, r, thread) is the first column of a run, which may be beyond the last.
    """

    threads: int
    groups: int
    passes: int
    runs: int
    run: int
    first: Callable[[Expr, Expr, Expr], Expr]


class ValueSum(NamedTuple):
    """The sum of values [positions, V] by weights [positions] ≥ 0: its buffers and inlines, which all threads call.

    copy(destination, j, column, exists) has 16 bytes of position j on their way into shared memory, or zeros;
    read(value fp32, width, j, column) reads some values.
    - begin(held, n, count, copy, tx): the first of what the thread needs for pass n on its way, of `count` positions.
      `held` is `held_bytes` of shared memory; a thread reads only what it has put there itself.
    - weigh(weights, unit [1], held_weights, tx): what `add` needs of weights in shared memory, of `weights_shape` and
      `weights_dtype`. Weight k of a thread is that of position k · threads + tx, or zero. It ends with a barrier.
    - add(sums [runs · run], held, weights, unit, n, count, copy, read, tx): the thread's sums of pass n.
    """

    columns: Columns
    threads: int
    held_bytes: int
    weights_shape: tuple[int, ...]
    weights_dtype: str
    begin: Any
    weigh: Any
    add: Any


def in_16_bytes(dtype: str) -> int:
    return 128 // DataType(dtype).bits


@functools.cache
def values_sum(value_size: int, longest: int, dtype: str) -> ValueSum:
    """Of values of `dtype`, at most `longest` positions. `weigh` stores weights of codes; others are in `weights`."""
    width = math.gcd(value_size, in_16_bytes(dtype))
    vectors = value_size // width
    columns = min(vectors, THREADS)
    groups = THREADS // columns
    threads = divide(groups * columns, 32) * 32
    # Vectors of 16 bytes go through a ring in shared memory.
    streamed = width == in_16_bytes(dtype)
    widen = widen_vector(dtype)

    def first_column(n: Expr, r: Expr, thread: Expr) -> Expr:
        return (n * columns + thread) * width

    @T.inline
    def load(held, i, n, count, copy, tx):
        j: T.let = i * groups + tx // columns
        vector: T.let = n * columns + tx % columns
        copy(
            T.address_of(held[(i % VECTORS * threads + tx) * width]),
            j,
            vector * width,
            tirx.all(j < count, vector < vectors, tx < columns * groups),
        )
        commit_copies()

    @T.inline
    def begin(held, n, count, copy, tx):
        for i in T.unroll(VECTORS if streamed else 0):
            load(held, i, n, count, copy, tx)

    @T.inline
    def weigh(weights, unit, held_weights, tx):
        if dtype == "int8":
            for k in T.unroll(divide(longest, threads)):
                if k * threads + tx < longest:
                    weights[k * threads + tx] = held_weights[k]
        T.tvm_storage_sync("shared")

    @T.inline
    def add(sums, held, weights, unit, n, count, copy, read, tx):
        vector_bytes = T.alloc_buffer((4,), "uint32", scope="local")
        value = T.alloc_buffer((width,), scope="local")
        weight = T.alloc_buffer((1,), scope="local")
        for v in T.unroll(width):
            sums[v] = T.float32(0)
        for i in T.serial(divide(count, groups)):
            j: T.let = i * groups + tx // columns
            vector: T.let = n * columns + tx % columns
            if streamed:
                wait_copies(VECTORS - 1)
                load_registers(T.address_of(vector_bytes[0]), T.address_of(held[(i % VECTORS * threads + tx) * width]))
                for p in T.unroll(width // 4):
                    widen(T.address_of(value[p * 4]), T.address_of(vector_bytes[p * (16 // width)]))
            else:
                for v in T.unroll(width):
                    value[v] = T.float32(0)
                if j < count and vector < vectors and tx < columns * groups:
                    read(value, width, j, vector * width)
            weight[0] = T.if_then_else(j < count, weights[T.min(j, longest - 1)], T.float32(0))
            for v in T.unroll(width):
                sums[v] = sums[v] + weight[0] * value[v]
            # A vector's successor is on its way as soon as it is used.
            if streamed:
                load(held, i + VECTORS, n, count, copy, tx)

    return ValueSum(
        Columns(columns, groups, divide(vectors, columns), 1, width, first_column),
        threads,
        VECTORS * threads * 16 if streamed else 0,
        (longest,),
        "float32",
        begin,
        weigh,
        add,
    )
