"""The life of slots: advance, end of a chunk, copy, reset."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase


@functools.cache
def advance(phase: Phase, slots: int) -> tirx.PrimFunc:
    """Kernel (tokens [n], slots, position [S, 2]): the offset in the chunk grows by the slot's tokens.

    Right after a chunk's last token the offset is C, until `end_chunk`.
    """

    @kernel
    def compute(tokens_handle: T.handle, slots_handle: T.handle, position: T.Buffer((slots, 2), "int32")):
        n = T.int32()
        _tokens = T.match_buffer(tokens_handle, (n,), "int32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        for s in T.serial(phase.sequences(n)):
            position[slot_ids[s], 1] = position[slot_ids[s], 1] + phase.length(n)

    return compute


@functools.cache
def next_chunk(slots: int) -> tirx.PrimFunc:
    """Kernel (slots [b], position [S, 2]): on to offset 0 of the next chunk."""

    @kernel
    def compute(slots_handle: T.handle, position: T.Buffer((slots, 2), "int32")):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        for s in T.serial(b):
            position[slot_ids[s], 0] = position[slot_ids[s], 0] + 1
            position[slot_ids[s], 1] = 0

    return compute


@functools.cache
def copy(slots: int, shape: tuple[int, ...], dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [2]: source, destination; tensor [S, *shape]): copy one slot's part, in place."""
    size = math.prod(shape)

    @kernel
    def compute(slot_ids: T.Buffer((2,), "int32"), tensor: T.Buffer((slots, *shape), dtype)):
        flat = T.decl_buffer((slots, size), dtype, data=tensor.data)
        for i in T.serial(size):
            flat[slot_ids[1], i] = flat[slot_ids[0], i]

    return compute


@functools.cache
def fill(slots: int, shape: tuple[int, ...], dtype: str, value: float) -> tirx.PrimFunc:
    """Kernel (slots [b], tensor [S, *shape]): every element of the named slots becomes `value`."""
    size = math.prod(shape)
    constant = tirx.const(int(value) if dtype.startswith("int") else value, dtype)

    @kernel
    def compute(slots_handle: T.handle, tensor: T.Buffer((slots, *shape), dtype)):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        flat = T.decl_buffer((slots, size), dtype, data=tensor.data)
        for s in T.serial(b):
            for i in T.serial(size):
                flat[slot_ids[s], i] = constant

    return compute
