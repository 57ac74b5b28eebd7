"""Rows of the embedding (specification 2.1), for CUDA: 16 bytes of a row for each thread, or a word of codes."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import launch_dependents, wait_for_predecessor
from gecko_mlc.tir_kernels.expressions import f32, loader
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.weights import weight_loader

THREADS = 256


def _row(dim: int, scale: float, weights: WeightFormat):  # type: ignore[no-untyped-def]
    """The blocks of a row, and an inline (weight, token, x, row, vector) that stores a vector of it in x."""
    dense = isinstance(weights, Dense)
    width = math.gcd(dim, (4 if weights.dtype == "float32" else 8) if dense else weights.codes_per_word)
    part = math.gcd(width, 4)
    load = loader(weights.dtype) if dense else weight_loader(weights, dim)

    @T.inline
    def take_vector(weight, token, x, row, vector):
        held = T.alloc_buffer((width,), weights.dtype if dense else "float32", scope="local")
        if vector < dim // width:
            if dense:
                for v in T.vectorized(width):
                    held[v] = weight[token, vector * width + v]
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        x[row, vector * width + k * part + v] = load(held, k * part + v) * f32(scale)
            else:
                for v in T.unroll(width):
                    held[v] = load(weight, token, vector * width + v) * f32(scale)
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        x[row, vector * width + k * part + v] = held[k * part + v]

    return divide(dim // width, THREADS), take_vector


@functools.cache
def take(vocab_size: int, dim: int, scale: float, weights: WeightFormat) -> tirx.PrimFunc:
    """Kernel (tokens [n] int32, weight [V, D] in the format `weights`) → x [n, D] fp32. Tokens lie in [0, V)."""
    blocks, take_vector = _row(dim, scale, weights)

    @kernel
    def embed(
        tokens_handle: T.handle, weight: T.Buffer(weights.shape(vocab_size, dim), weights.dtype), x_handle: T.handle
    ):
        n = T.int32()
        tokens = T.match_buffer(tokens_handle, (n,), "int32")
        x = T.match_buffer(x_handle, (n, dim), "float32")
        row = T.launch_thread("blockIdx.x", n)
        block = T.launch_thread("blockIdx.y", blocks)
        tx = T.launch_thread("threadIdx.x", THREADS)
        take_vector(weight, tokens[row], x, row, block * THREADS + tx)

    return embed


@functools.cache
def take_current(vocab_size: int, dim: int, scale: float, weights: WeightFormat, slots: int) -> tirx.PrimFunc:
    """Kernel (token [S] int32, slots [b], weight [V, D] in the format `weights`) → x [b, D] fp32: of the slots' current
    tokens, of token 0 where none was drawn."""
    blocks, take_vector = _row(dim, scale, weights)

    @kernel
    def embed(
        token: T.Buffer((slots,), "int32"),
        slots_handle: T.handle,
        weight: T.Buffer(weights.shape(vocab_size, dim), weights.dtype),
        x_handle: T.handle,
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        x = T.match_buffer(x_handle, (b, dim), "float32")
        row = T.launch_thread("blockIdx.x", b)
        block = T.launch_thread("blockIdx.y", blocks)
        tx = T.launch_thread("threadIdx.x", THREADS)
        # Once this has been waited for, the kernels of `decode` find the state as earlier calls left it.
        wait_for_predecessor()
        launch_dependents()
        take_vector(weight, T.max(token[slot_ids[row]], 0), x, row, block * THREADS + tx)

    return embed
