"""Quantization as a transformation of the model: its matrices become codes and scales."""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm.relax.frontend import nn

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat


class GroupQuantized(nn.Module):  # type: ignore[misc]
    """A matrix [outputs, inputs] in `layout`, with the bias of the layer that it was."""

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None, layout: GroupLayout) -> None:
        self.outputs, self.inputs, self.layout = outputs, inputs, layout
        self.weight = nn.Parameter(layout.shape(outputs, inputs), layout.dtype)
        self.bias = bias


class GroupQuantize(nn.Mutator):  # type: ignore[misc]
    """Puts `GroupQuantized` in the place of every `nn.Linear` and `nn.Embedding`."""

    def __init__(self, layout: GroupLayout) -> None:
        self.layout = layout

    def visit_module(self, name: str, node: nn.Module) -> Any:
        """The module that takes the place of `node`."""
        if isinstance(node, (nn.Linear, nn.Embedding)):
            outputs, inputs = (int(extent) for extent in node.weight.shape)
            return GroupQuantized(outputs, inputs, getattr(node, "bias", None), self.layout)
        return self.visit(name, node)


class Matrix(NamedTuple):
    """A layer's matrix [outputs, inputs] as kernels take it: a tensor, and how the matrix lies in it."""

    weight: nn.Tensor
    outputs: int
    inputs: int
    format: WeightFormat


def matrix(layer: nn.Module) -> Matrix:
    """The matrix of an `nn.Linear`, an `nn.Embedding` or a `GroupQuantized`."""
    if isinstance(layer, GroupQuantized):
        return Matrix(layer.weight, layer.outputs, layer.inputs, layer.layout)
    outputs, inputs = (int(extent) for extent in layer.weight.shape)
    return Matrix(layer.weight, outputs, inputs, Dense(layer.weight.dtype))
