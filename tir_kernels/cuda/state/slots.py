"""The life of slots on a GPU: advance, end of a chunk, copy, reset.

Tensors are counted in vectors of up to 16 bytes: an int32 reaches 2³¹ of those, which may be more than 2³¹ elements.
"""

import functools
import math

from tvm import DataType, tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import launch_dependents, wait_for_predecessor
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase

THREADS = 256
# Slots of a block of the kernels on positions.
SEQUENCES = 32
# 16-byte vectors of a thread.
VECTORS = 4


@functools.cache
def advance(phase: Phase, slots: int) -> tirx.PrimFunc:
    """Kernel (tokens [n], slots, position [S, 2]): the offset in the chunk grows by the slot's tokens.

    Right after a chunk's last token the offset is C, until `end_chunk`.
    """

    @kernel
    def move_on(tokens_handle: T.handle, slots_handle: T.handle, position: T.Buffer((slots, 2), "int32")):
        n = T.int32()
        _tokens = T.match_buffer(tokens_handle, (n,), "int32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        block = T.launch_thread("blockIdx.x", divide(phase.sequences(n), SEQUENCES))
        tx = T.launch_thread("threadIdx.x", SEQUENCES)
        s: T.let = block * SEQUENCES + tx
        launch_dependents()
        wait_for_predecessor()
        if s < phase.sequences(n):
            position[slot_ids[s], 1] = position[slot_ids[s], 1] + phase.length(n)

    return move_on


@functools.cache
def next_chunk(slots: int) -> tirx.PrimFunc:
    """Kernel (slots [b], position [S, 2]): on to offset 0 of the next chunk."""

    @kernel
    def start_chunk(slots_handle: T.handle, position: T.Buffer((slots, 2), "int32")):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        block = T.launch_thread("blockIdx.x", divide(b, SEQUENCES))
        tx = T.launch_thread("threadIdx.x", SEQUENCES)
        s: T.let = block * SEQUENCES + tx
        launch_dependents()
        wait_for_predecessor()
        if s < b:
            position[slot_ids[s], 0] = position[slot_ids[s], 0] + 1
            position[slot_ids[s], 1] = 0

    return start_chunk


@functools.cache
def copy(slots: int, shape: tuple[int, ...], dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [2]: source, destination; tensor [S, *shape]): copy one slot's part, in place."""
    vectors, vector_dtype = _vectors(shape, dtype)

    @kernel
    def copy_slot(slot_ids: T.Buffer((2,), "int32"), tensor: T.Buffer((slots, *shape), dtype)):
        flat = T.decl_buffer((slots * vectors,), vector_dtype, data=tensor.data)
        block = T.launch_thread("blockIdx.x", divide(vectors, THREADS * VECTORS))
        tx = T.launch_thread("threadIdx.x", THREADS)
        held = T.alloc_buffer((VECTORS,), vector_dtype, scope="local")
        for k in T.unroll(VECTORS):
            if (block * VECTORS + k) * THREADS + tx < vectors:
                held[k] = flat[slot_ids[0] * vectors + (block * VECTORS + k) * THREADS + tx]
        for k in T.unroll(VECTORS):
            if (block * VECTORS + k) * THREADS + tx < vectors:
                flat[slot_ids[1] * vectors + (block * VECTORS + k) * THREADS + tx] = held[k]

    return copy_slot


@functools.cache
def fill(slots: int, shape: tuple[int, ...], dtype: str, value: float) -> tirx.PrimFunc:
    """Kernel (slots [b], tensor [S, *shape]): every element of the named slots becomes `value`, 0 if it has 8 bits."""
    vectors, vector_dtype = _vectors(shape, dtype)
    constant = tirx.const(int(value) if dtype.startswith("int") else value, vector_dtype)

    @kernel
    def fill_slots(slots_handle: T.handle, tensor: T.Buffer((slots, *shape), dtype)):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        flat = T.decl_buffer((slots * vectors,), vector_dtype, data=tensor.data)
        block = T.launch_thread("blockIdx.x", divide(vectors, THREADS * VECTORS))
        sequence = T.launch_thread("blockIdx.y", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        for k in T.unroll(VECTORS):
            if (block * VECTORS + k) * THREADS + tx < vectors:
                flat[slot_ids[sequence] * vectors + (block * VECTORS + k) * THREADS + tx] = constant

    return fill_slots


def _vectors(shape: tuple[int, ...], dtype: str) -> tuple[int, str]:
    """How many vectors of up to 16 bytes a slot's part is, and their dtype."""
    size = math.prod(shape)
    if dtype == "int8" and size % 4 == 0:
        # Vectors of 16 bytes as TVM writes them do not compile.
        size, dtype = size // 4, "int32"
    width = math.gcd(size, 128 // DataType(dtype).bits)
    return size // width, dtype if width == 1 else f"{dtype}x{width}"
