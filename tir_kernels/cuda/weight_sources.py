"""Where the weights of a block's products are, for CUDA, whatever their format."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import select_address
from gecko_mlc.tir_kernels.weights import weight_loader
from tvm.script import tirx as T

from gecko_mlc.group_quantization import WeightFormat

Expr = Any


class Matrix(NamedTuple):
    """The reading of a weight, or of several: address(which, o, i) is that of element i in the memory of row o, and
    value(which, o, k) the fp32 number that input k of output o is multiplied by."""

    address: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]


def matrix_reader(weights: WeightFormat, features: int) -> Callable[[Any], Matrix]:
    """A function from a buffer that holds a weight [O, `features`] to its reading."""
    load = weight_loader(weights, features)
    return lambda weight: Matrix(
        lambda _, o, i: T.address_of(weight[o, i]),
        lambda _, o, k: load(weight, o, k),
    )


def either(first: Callable[[Expr], Expr], a: Matrix, b: Matrix) -> Matrix:
    """The reading of a where first(which) holds, else of b."""
    return Matrix(
        lambda which, o, i: select_address(first(which), a.address(which, o, i), b.address(which, o, i)),
        lambda which, o, k: T.if_then_else(first(which), a.value(which, o, k), b.value(which, o, k)),
    )


class Source(NamedTuple):
    """What a block multiplies by: rows `first` to `end` of a matrix, or of each of several. `tx` is the thread."""

    matrix: Matrix
    first: Expr
    end: Expr
    tx: Expr
