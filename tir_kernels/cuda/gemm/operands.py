"""Where the weights of a block's products are, for CUDA, whatever their format."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import select_address
from gecko_mlc.tir_kernels.weights import weight_loader

Expr = Any


class Matrix(NamedTuple):
    """The reading of a weight, or of several: address(which, o, i) is that of element i in the memory of row o, and
    value(which, o, k) the fp32 number that input k of output o is multiplied by."""

    address: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]


def matrix_reader(weights: WeightFormat, features: int) -> Callable[..., Matrix]:
    """A function from a buffer that holds a weight [O, `features`], from row `first` on, to its reading."""
    load = weight_loader(weights, features)
    return lambda weight, first=0: Matrix(
        lambda _, o, i: T.address_of(weight[first + o, i]),
        lambda _, o, k: load(weight, first + o, k),
    )


def either(first: Callable[[Expr], Expr], a: Matrix, b: Matrix) -> Matrix:
    """The reading of a where first(which) holds, else of b."""
    return Matrix(
        lambda which, o, i: select_address(first(which), a.address(which, o, i), b.address(which, o, i)),
        lambda which, o, k: T.if_then_else(first(which), a.value(which, o, k), b.value(which, o, k)),
    )


def stacked(matrices: Sequence[Matrix], outputs: Sequence[int]) -> Callable[[Expr, Expr], Expr]:
    """address(o, i) in matrices of so many outputs, the next below the one before."""
    matrix, *others = matrices
    if not others:
        return lambda o, i: matrix.address(0, o, i)
    below = stacked(others, outputs[1:])
    return lambda o, i: select_address(o < outputs[0], matrix.address(0, o, i), below(o - outputs[0], i))


class Source(NamedTuple):
    """What a block multiplies by: rows `first` to `end` of a matrix, or of each of several. `tx` is the thread."""

    matrix: Matrix
    first: Expr
    end: Expr
    tx: Expr
