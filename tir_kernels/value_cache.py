"""Values of the cache (specification 2.4): numbers, or 8-bit codes with a scale for each token and head.

A value is code · scale, and the scale the head's largest magnitude / 127. What reads codes multiplies its weights with
the scales: a scale belongs to a position, over which reads sum.
"""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.expressions import Expr, f32, loader
from gecko_mlc.tir_kernels.oracles.value_cache import LARGEST_CODE, TINY


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
