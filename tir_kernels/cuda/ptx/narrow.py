"""Conversion of fp32 values to the dtype of activations."""

from collections.abc import Callable

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.expressions import Expr, f32


def narrow(dtype: str) -> Callable[[Expr], Expr]:
    """A function from fp32 to `dtype`; float16 saturates, as an infinity would spoil every later sum."""

    def convert(value: Expr) -> Expr:
        if dtype == "float32":
            return value
        if dtype == "float16":
            value = T.max(T.min(value, f32(65504.0)), f32(-65504.0))
        return T.Cast(dtype, value)

    return convert
