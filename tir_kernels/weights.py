"""Reading elements of a weight matrix, however it lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.expressions import Expr, loader


def weight_loader(weights: WeightFormat, inputs: int) -> Callable[[Any, Expr, Expr], Expr]:
    """A function (buffer, o, k) that reads the weight of output o and input k of a matrix [out, `inputs`] as fp32."""
    if isinstance(weights, Dense):
        return loader(weights.dtype)
    group, lanes = weights.quantization, weights.lanes
    per_word, half = weights.codes_per_word, weights.codes_per_word // 2
    mask, zero = tirx.const(2**weights.code_bits - 1, "uint32"), tirx.const(group.largest, "float32")
    offset, span, span_words = weights.scale_offset(inputs), weights.span(inputs), weights.span_words(inputs)
    span_inputs = span * group.group_size
    scale_bits = np.dtype(group.scale_dtype).itemsize * 8
    scales_per_word = 32 // scale_bits

    def load(buffer: Any, o: Expr, k: Expr) -> Expr:
        index = k % per_word
        shift = T.Cast("uint32", index // half * 16 + index % half * weights.code_bits)
        # Groups hold whole words.
        first = k // span_inputs * span_words
        word = buffer[o // lanes, first + k % span_inputs // per_word * lanes + o % lanes]
        code = T.bitwise_and(T.shift_right(word, shift), mask)
        place = k % span_inputs // group.group_size * lanes + o % lanes
        word = buffer[o // lanes, first + offset + place // scales_per_word]
        if scale_bits == 32:
            scale = T.reinterpret("float32", word)
        else:
            bits = T.shift_right(word, T.Cast("uint32", place % 2 * 16))
            scale = T.Cast("float32", T.reinterpret("float16", T.Cast("uint16", T.bitwise_and(bits, T.uint32(0xFFFF)))))
        return (T.Cast("float32", code) - zero) * scale

    return load
