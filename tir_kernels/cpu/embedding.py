"""Rows of the embedding (specification 2.1), and the choice of the row that goes to the head."""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.expressions import f32
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.weights import weight_loader


@functools.cache
def take(vocab_size: int, dim: int, scale: float, weights: WeightFormat) -> tirx.PrimFunc:
    """Kernel (tokens [n] int32, weight [V, D] in the format `weights`) → x [n, D] fp32. Tokens lie in [0, V)."""

    load = weight_loader(weights, dim)
    shape, dtype = weights.shape(vocab_size, dim), weights.dtype

    @kernel
    def compute(tokens_handle: T.handle, weight: T.Buffer(shape, dtype), x_handle: T.handle):
        n = T.int32()
        tokens = T.match_buffer(tokens_handle, (n,), "int32")
        x = T.match_buffer(x_handle, (n, dim), "float32")
        for i in T.serial(n):
            for d in T.serial(dim):
                x[i, d] = load(weight, tokens[i], d) * f32(scale)

    return compute


@functools.cache
def current_tokens(slots: int) -> tirx.PrimFunc:
    """Kernel (token [S] int32, slots [b]) → tokens [b]: what `decode` continues with, 0 where none was drawn."""

    @kernel
    def compute(token: T.Buffer((slots,), "int32"), slots_handle: T.handle, tokens_handle: T.handle):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        tokens = T.match_buffer(tokens_handle, (b,), "int32")
        for i in T.serial(b):
            tokens[i] = T.max(token[slot_ids[i]], 0)

    return compute


@functools.cache
def last_row(dim: int) -> tirx.PrimFunc:
    """Kernel (x [n, D]) → the last row [1, D], fp32."""

    @kernel
    def compute(x_handle: T.handle, y: T.Buffer((1, dim), "float32")):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        for d in T.serial(dim):
            y[0, d] = x[n - 1, d]

    return compute


@functools.cache
def store_logits(outputs: int, slots: int, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (rows [b, O], slots [b], logits [S, O]): logits of the named slots, in place, fp32."""
    width = hardware.width(outputs)

    @kernel
    def compute(rows_handle: T.handle, slots_handle: T.handle, logits: T.Buffer((slots, outputs), "float32")):
        b = T.int32()
        rows = T.match_buffer(rows_handle, (b, outputs), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        for i in T.serial(b):
            for o in T.serial(outputs // width):
                for lane in T.vectorized(width):
                    logits[slot_ids[i], o * width + lane] = rows[i, o * width + lane]

    return compute
