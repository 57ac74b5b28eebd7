"""Weights as the operand of a GEMM, whatever their format."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import select_address
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.weights import weight_loader


class WeightView(NamedTuple):
    """A weight [O, K] in memory, or several side by side, `which` being one of them.

    address(which, o, i) is that of element i in the memory of row o, and value(which, o, k) the fp32 number that input
    k of output o is multiplied by.
    """

    address: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]


class WeightOperand(NamedTuple):
    """What a block multiplies x by: rows `first` to `end` of a weight, or of each of several. `tx` is the thread."""

    weight: WeightView
    first: Expr
    end: Expr
    tx: Expr


def weight_viewer(weights: WeightFormat, features: int) -> Callable[..., WeightView]:
    """A function (buffer, first = 0): the view of a weight [O, `features`] that a buffer holds from row `first` on."""
    load = weight_loader(weights, features)
    return lambda weight, first=0: WeightView(
        lambda _, o, i: T.address_of(weight[first + o, i]),
        lambda _, o, k: load(weight, first + o, k),
    )


def select_view(condition: Callable[[Expr], Expr], a: WeightView, b: WeightView) -> WeightView:
    """The view of a where condition(which) holds, else of b."""
    return WeightView(
        lambda which, o, i: select_address(condition(which), a.address(which, o, i), b.address(which, o, i)),
        lambda which, o, k: T.if_then_else(condition(which), a.value(which, o, k), b.value(which, o, k)),
    )


def concatenated_address(views: Sequence[WeightView], outputs: Sequence[int]) -> Callable[[Expr, Expr], Expr]:
    """address(o, i) in weights of so many `outputs` each, concatenated along their rows."""
    view, *others = views
    if not others:
        return lambda o, i: view.address(0, o, i)
    below = concatenated_address(others, outputs[1:])
    return lambda o, i: select_address(o < outputs[0], view.address(0, o, i), below(o - outputs[0], i))
