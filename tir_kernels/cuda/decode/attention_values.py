"""Cached values of a decoded token's attention, for CUDA: through a ring in shared memory, to registers."""

import math
from typing import Any, NamedTuple

from tvm import DataType, tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    commit_copies,
    copy_16_if,
    load_registers,
    wait_copies,
    widen_vector,
)
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import USUAL_SHARED_BYTES
from gecko_mlc.tir_kernels.shapes import Window

THREADS = 256
# Vectors that a thread has on their way at a time: of codes fewer, for three blocks to fit.
VALUES, CODES = 16, 12


class Thread(NamedTuple):
    """A thread: it has vectors `column` of a tile, of every position that its `group` has."""

    tx: Expr
    column: Expr
    group: Expr


class Values(NamedTuple):
    """`groups` positions at a time, each by `columns` threads with a vector of `width`, in `tiles` of so many vectors.

    Vectors of 16 bytes are `streamed` through a `ring` of so many for each thread, which reads only what it has put
    into it itself; `early` ones are on their way before the predecessor has ended. The block has `threads`, and
    `held_vectors` in dynamic shared memory.

    load(values, held_values, part, head, thread, i, tile): its i-th vector into the ring, zeros if it has none.
    read(values, held_values, vector_bytes, value, part, head, thread, i, tile): value = that vector.
    """

    width: int
    vectors: int
    columns: int
    groups: int
    tiles: int
    threads: int
    streamed: bool
    ring: int
    early: int
    held_vectors: int
    load: Any
    read: Any


def cached_values(window: Window) -> Values:
    """How the threads of a block read the cached values of a head."""
    size, dtype = window.value_head_dim, window.value_dtype
    width = math.gcd(size, 128 // DataType(dtype).bits)
    vectors = size // width
    columns = min(vectors, THREADS)
    groups = THREADS // columns
    threads = -(-groups * columns // 32) * 32
    streamed, ring = width == 128 // DataType(dtype).bits, CODES if window.scaled else VALUES
    # More of them would keep the memory from the predecessor's last blocks.
    early = ring // 2 if streamed else 0
    # So much of it that TVM asks for more than the usual, which the rest would exceed.
    held_vectors = max(ring * threads, USUAL_SHARED_BYTES // 16 + 1) if streamed else 1
    widen, widened = widen_vector(dtype), math.gcd(width, 4)

    @T.inline
    def load(values, held_values, part, head, thread, i, tile):
        j: T.let = i * groups + thread.group
        k: T.let = part.first + T.min(j, T.max(part.cached - 1, 0))
        copy_16_if(
            T.address_of(held_values[(i % ring * threads + thread.tx) * width]),
            T.address_of(
                values[
                    part.slot,
                    part.buffer(k),
                    part.offset(k),
                    head * size + T.min(tile * columns + thread.column, vectors - 1) * width,
                ]
            ),
            T.Cast("int32", tirx.all(j < part.cached, tile * columns + thread.column < vectors, thread.group < groups)),
        )
        commit_copies()

    @T.inline
    def read(values, held_values, vector_bytes, value, part, head, thread, i, tile):
        if streamed:
            wait_copies(ring - 1)
            load_registers(
                T.address_of(vector_bytes[0]), T.address_of(held_values[(i % ring * threads + thread.tx) * width])
            )
            for p in T.unroll(width // widened):
                widen(T.address_of(value[p * widened]), T.address_of(vector_bytes[p * (4 * widened // width)]))
        else:
            k: T.let = part.first + i * groups + thread.group
            for v in T.unroll(width):
                value[v] = T.float32(0)
            if k < part.first + part.cached and tile * columns + thread.column < vectors and thread.group < groups:
                for v in T.unroll(width):
                    value[v] = T.Cast(
                        "float32",
                        values[
                            part.slot,
                            part.buffer(k),
                            part.offset(k),
                            head * size + (tile * columns + thread.column) * width + v,
                        ],
                    )

    tiles = -(-vectors // columns)
    return Values(width, vectors, columns, groups, tiles, threads, streamed, ring, early, held_vectors, load, read)
