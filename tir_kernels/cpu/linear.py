"""Matrix products, and what follows them; the products are of `dense_product` and `quantized_product`, by the weights'
format."""

import functools
from types import ModuleType
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cpu import dense_product, quantized_product
from gecko_mlc.tir_kernels.expressions import Expr, silu
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel

# Operands of the epilogue, in the order of the signature.
OPERANDS = ("bias", "gate", "scale", "addend", "second")


def packed_shape(n: Expr, features: int, weights: WeightFormat, hardware: CPU) -> tuple[Expr, ...]:
    """The shape of what `pack_rows` makes of n rows."""
    return _products(weights).packed_shape(n, features, weights, hardware)


def packed_dtype(weights: WeightFormat) -> str:
    """The dtype of what `pack_rows` makes."""
    return _products(weights).PACKED_DTYPE


def pack_rows(features: int, weights: WeightFormat, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (x [n, K]) → packed: x as products with weights of this format read it, made once for all of them."""
    return _products(weights).pack_rows(features, weights, hardware)


def _products(weights: WeightFormat) -> ModuleType:
    return dense_product if isinstance(weights, Dense) else quantized_product


@functools.cache
def linear(
    in_features: int,
    out_features: int,
    weights: WeightFormat,
    hardware: CPU,
    activation: str | None = None,
    operands: tuple[str, ...] = (),
) -> tirx.PrimFunc:
    """Kernel (x [n, K], packed, weight [N, K] in the format `weights`, operands) → y [n, N].

    Everything but the weight is fp32; `packed` is what `pack_rows` makes of x. With a the activation, None or "silu",
    y = a(x Wᵀ + bias) ⊙ gate ⊙ scale + addend + second; what `operands` does not name is left out. `bias` and `scale`
    are [N], the others [n, N].
    """
    shape, dtype = weights.shape(out_features, in_features), weights.dtype
    product = _products(weights).product(in_features, out_features, weights, hardware)

    def finish(value: Expr, row: Expr, output: Expr, buffers: tuple[Any, ...]) -> Expr:
        bias, gate, scale, addend, second = buffers
        if "bias" in operands:
            value = value + bias[output]
        if activation == "silu":
            value = silu(value)
        if "gate" in operands:
            value = value * gate[row, output]
        if "scale" in operands:
            value = value * scale[output]
        if "addend" in operands:
            value = value + addend[row, output]
        if "second" in operands:
            value = value + second[row, output]
        return value

    @kernel(**{name: name in operands for name in OPERANDS})
    def compute(
        x_handle: T.handle,
        packed_handle: T.handle,
        weight: T.Buffer(shape, dtype),
        bias: T.Buffer((out_features,), "float32"),
        gate_handle: T.handle,
        scale: T.Buffer((out_features,), "float32"),
        addend_handle: T.handle,
        second_handle: T.handle,
        y_handle: T.handle,
    ):
        n, depth = T.int32(), T.int32()
        x = T.match_buffer(x_handle, (n, depth), "float32")
        packed = T.match_buffer(packed_handle, packed_shape(n, in_features, weights, hardware), packed_dtype(weights))
        gate = T.match_buffer(gate_handle, (n, out_features), "float32")
        addend = T.match_buffer(addend_handle, (n, out_features), "float32")
        second = T.match_buffer(second_handle, (n, out_features), "float32")
        y = T.match_buffer(y_handle, (n, out_features), "float32")
        product(
            x,
            packed,
            weight,
            n,
            depth,
            lambda value, i, j: finish(value, i, j, (bias, gate, scale, addend, second)),
            y,
        )

    return compute
