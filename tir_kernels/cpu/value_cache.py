"""The cache of values (specification 2.4): numbers, or 8-bit codes with a scale for each token and head.

A value is code · scale, and the scale the head's largest magnitude / 127. What reads codes multiplies its weights with
the scales: a scale belongs to a position, over which reads sum.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear
from gecko_mlc.tir_kernels.expressions import f32, loader
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import without_parameter
from gecko_mlc.tir_kernels.oracles.value_cache import LARGEST_CODE, TINY

Expr = Any


def scale_of(largest: Expr) -> Expr:
    """The scale of a head whose largest magnitude is `largest`."""
    return largest / f32(LARGEST_CODE)


def inverse_of(largest: Expr) -> Expr:
    """What `code_of` multiplies the head's values with."""
    return f32(LARGEST_CODE) / T.max(largest, f32(TINY))


def code_of(value: Expr, inverse: Expr) -> Expr:
    """The code of a value, rounded half to even."""
    return T.Cast("int8", T.nearbyint(value * inverse))


def value_loader(dtype: str) -> Callable[..., Expr]:
    """A function (values, value_scales, head, slot, parity, j, e) that reads a value of the cache as fp32."""
    load = loader(dtype)

    def load_value(values: Any, value_scales: Any, head: Expr, slot: Expr, parity: Expr, j: Expr, e: Expr) -> Expr:
        value = load(values, slot, parity, j, e)
        return value * value_scales[slot, parity, j, head] if dtype == "int8" else value

    return load_value


def without_scales(kernel: tirx.PrimFunc, dtype: str) -> tirx.PrimFunc:
    """The kernel for values of `dtype`: without its argument `value_scales` if they have none."""
    return kernel if dtype == "int8" else without_parameter(kernel, "value_scales")


def row_writer(value_dim: int, heads: int, dtype: str, machine: CPU):  # type: ignore[no-untyped-def]
    """An inline (v, i, values, value_scales, slot, parity, offset): row i of v [n, E] fp32 into the cache
    [S, 2, C, E] of `dtype`, and its scales into [S, 2, C, H]."""
    size = value_dim // heads
    width = machine.width(size)

    @T.inline
    def write(v, i, values, value_scales, slot, parity, offset):
        if dtype != "int8":
            for e in T.serial(value_dim):
                values[slot, parity, offset, e] = T.Cast(dtype, v[i, e])
        else:
            for h in T.serial(heads):
                lanes = T.alloc_buffer((1, width))
                largest = T.alloc_buffer((1,))
                inverse = T.alloc_buffer((1,))
                clear(lanes, 1, width)
                for e in T.serial(size // width):
                    for lane in T.vectorized(width):
                        lanes[0, lane] = T.max(lanes[0, lane], T.abs(v[i, h * size + e * width + lane]))
                largest[0] = T.float32(0)
                for lane in T.serial(width):
                    largest[0] = T.max(largest[0], lanes[0, lane])
                value_scales[slot, parity, offset, h] = scale_of(largest[0])
                inverse[0] = inverse_of(largest[0])
                for e in T.serial(size // width):
                    for lane in T.vectorized(width):
                        values[slot, parity, offset, h * size + e * width + lane] = code_of(
                            v[i, h * size + e * width + lane], inverse[0]
                        )

    return write
