"""Matrix products y = epilogue(x Wᵀ): signatures and epilogues; the products are of `dense_product` and
`quantized_product`, by the weights' format."""

import functools
from types import ModuleType
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cpu import dense_product, quantized_product
from gecko_mlc.tir_kernels.expressions import silu
from gecko_mlc.tir_kernels.hardware import CPU

Expr = Any


def packed_shape(n: Expr, features: int, weights: WeightFormat, machine: CPU) -> tuple[Expr, ...]:
    """The shape of what `pack_rows` makes of n rows."""
    return _products(weights).packed_shape(n, features, weights, machine)


def packed_dtype(weights: WeightFormat) -> str:
    """The dtype of what `pack_rows` makes."""
    return _products(weights).PACKED_DTYPE


def pack_rows(features: int, weights: WeightFormat, machine: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, K]) → packed: x as products with weights of this format read it, made once for all of them."""
    return _products(weights).pack_rows(features, weights, machine)


def _products(weights: WeightFormat) -> ModuleType:
    return dense_product if isinstance(weights, Dense) else quantized_product


@functools.cache
def linear(
    in_features: int,
    out_features: int,
    weights: WeightFormat,
    machine: CPU,
    epilogue: str = "plain",
    activation: str | None = None,
) -> tirx.PrimFunc:
    """Kernel (x [n, K], packed, weight [N, K] in the format `weights`, operands of the epilogue) → y [n, N].

    Everything but the weight is fp32; `packed` is what `pack_rows` makes of x. With a the activation, None
    or "silu", the epilogues are `plain` a(p), `bias` a(p + bias [N]), `gate` a(p) ⊙ gate [n, N],
    `residual` a(p) + addend [n, N], `residual2` with two addends, and `scale_residual`
    a(p) ⊙ scale [N] + addend [n, N].
    """
    shape, dtype = weights.shape(out_features, in_features), weights.dtype
    product = _products(weights).product(in_features, out_features, weights, machine)

    def packed_of(n: Expr) -> tuple[Expr, ...]:
        return packed_shape(n, in_features, weights, machine)

    packed_type = packed_dtype(weights)

    def activate(value: Expr) -> Expr:
        return silu(value) if activation == "silu" else value

    # Parsing happens at definition: only the signature asked for is defined.
    if epilogue == "plain":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value), y)

    elif epilogue == "bias":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            bias: T.Buffer((out_features,), "float32"),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value + bias[j]), y)

    elif epilogue == "gate":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            gate_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            gate = T.match_buffer(gate_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) * gate[i, j], y)

    elif epilogue == "residual":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            addend_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) + addend[i, j], y)

    elif epilogue == "residual2":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            addend_handle: T.handle,
            second_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            second = T.match_buffer(second_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(
                x,
                packed,
                weight,
                n,
                depth,
                lambda value, i, j: activate(value) + addend[i, j] + second[i, j],
                y,
            )

    elif epilogue == "scale_residual":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            scale: T.Buffer((out_features,), "float32"),
            addend_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, packed_of(n), packed_type)
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) * scale[j] + addend[i, j], y)

    else:
        raise ValueError(f"unknown epilogue {epilogue!r}")
    return kernel
