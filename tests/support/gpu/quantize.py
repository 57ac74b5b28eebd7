"""Group quantization on the GPU: the package's recipe and layout, for weights that are made there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.library import Parameter

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def quantize(layout: GroupLayout, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [out, in] of the scales' dtype → the matrix in memory, uint32, and what it stands for, of that dtype."""
    group = layout.quantization
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % group.group_size))
    values = padded.view(outputs, -1, group.group_size)
    scale = values.abs().amax(-1) / group.largest
    divisor = scale.where(scale > 0, torch.inf)[..., None]
    codes = (values / divisor + group.largest).round().clamp(0, 2 * group.largest)
    dequantized = ((codes - group.largest) * scale[..., None]).view(outputs, -1)[:, :inputs]
    codes = codes.view(outputs, -1)
    codes[:, inputs:] = 0
    codes = codes.to(torch.int32).view(outputs, -1, layout.codes_per_word)
    words = torch.zeros(codes.shape[:2], dtype=torch.int32, device=weight.device)
    for i in range(layout.codes_per_word):
        words |= codes[..., i] << layout.shift(i)
    packed = torch.zeros(layout.shape(outputs, inputs), dtype=torch.int32, device=weight.device)
    spans = packed.view(len(packed), -1, layout.span_words(inputs))
    offset, span = layout.scale_offset(inputs), layout.span(inputs)
    spans[..., :offset] = _interleave(words, layout.lanes, span * layout.words_per_group)
    scales = _interleave(scale, layout.lanes, span)
    spans[..., offset:].view(TORCH_DTYPES[group.scale_dtype])[..., : scales.shape[2]] = scales
    return packed.view(torch.uint32), dequantized


def _interleave(rows: torch.Tensor, lanes: int, size: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size, 0, -len(rows) % lanes))
    parts = padded.view(len(padded) // lanes, lanes, -1, size).permute(0, 2, 3, 1)
    return parts.reshape(*parts.shape[:2], -1)


def pack(parameters: dict[str, torch.Tensor], specs: Sequence[Parameter]) -> dict[str, torch.Tensor]:
    """The matrices that have a layout, in memory's order. In `parameters`, what their codes stand for takes their
    place."""
    packed = {}
    for spec in specs:
        if spec.layout is not None:
            packed[spec.name], parameters[spec.name] = quantize(spec.layout, parameters[spec.name])
    return packed
