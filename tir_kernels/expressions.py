"""Elementary functions as TensorIR expressions that vectorize on every target.

The C library's functions would be called lane by lane, and GPU drivers' differ from each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

Expr = Any

# Scores that no softmax may see; finite, so that a difference of two is a number.
MASKED = -1e30
# The largest number in fp32.
LARGEST = (2.0 - 2.0**-23) * 2.0**127


def f32(value: float) -> Expr:
    """A fp32 constant."""
    return tirx.const(value, "float32")


def loader(dtype: str) -> Callable[..., Expr]:
    """A function (buffer, *index) that reads an element of a buffer of `dtype` as fp32."""

    def load(buffer: Any, *index: Expr) -> Expr:
        return buffer[index] if dtype == "float32" else T.Cast("float32", buffer[index])

    return load


def polynomial(x: Expr, coefficients: list[float]) -> Expr:
    """Horner's scheme, highest power first."""
    value = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + f32(coefficient)
    return value


def exp(x: Expr) -> Expr:
    """e^x in fp32, within 2 ulp; 0 below -87.3 and finite up to the largest exponent."""
    clamped = T.max(T.min(x, f32(88.7)), f32(-87.3))
    # x = n·ln 2 + r, with ln 2 in two parts.
    n = T.floor(clamped * f32(1.0 / math.log(2.0)) + f32(0.5))
    r = (clamped - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    series = polynomial(r, [1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0])
    # 2^n in two factors, as n = 128 has no single one.
    integer = T.Cast("int32", n)
    half = T.shift_right(integer, 1)
    low = T.reinterpret("float32", T.shift_left(half + 127, 23))
    high = T.reinterpret("float32", T.shift_left(integer - half + 127, 23))
    return T.Select(x < f32(-87.3), f32(0.0), series * low * high)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return f32(1.0) / (f32(1.0) + exp(f32(0.0) - x))


def silu(x: Expr) -> Expr:
    """x·σ(x)."""
    return x * sigmoid(x)


def average_weight(count: Expr, beta: float) -> Expr:
    """(1 − β) / (1 − β^count): the weight of the newest value in a decayed average (8a).

    1 − β^n is -expm1(n·ln β): a power and a subtraction would lose four digits (section 7).
    """
    x = count * f32(math.log(beta))
    small = T.max(x, f32(-0.5))
    series = small * polynomial(small, [1.0 / math.factorial(k) for k in range(10, 0, -1)])
    expm1 = T.Select(x < f32(-0.5), exp(x) - f32(1.0), series)
    return f32(1.0 - beta) / (f32(0.0) - expm1)


def affine(normed: Expr, gamma: Expr, beta: Expr, size: int) -> Expr:
    """A feature of q, k, aq or ak, from that of the normed z of a head with `size` features."""
    return normed * ((f32(1.0) + gamma) * f32(1.0 / math.sqrt(size))) + beta
