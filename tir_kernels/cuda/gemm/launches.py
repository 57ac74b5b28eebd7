"""The launches of a GEMM with weights.

Tiles of quantized weights are dequantized for each row of tiles again. For many rows of x the weights are dequantized
once, by a launch before that of a GEMM with dense weights. The host knows how many rows there are, and chooses.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.gemm import weight_gemm
from gecko_mlc.tir_kernels.cuda.gemm.operands import WeightView, concatenated_address, weight_viewer
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import dequantize_rows
from gecko_mlc.tir_kernels.hardware import CUDA

# Rows of x that make up for dequantizing first. On an H200, with 4-bit weights of the 7B, 2048 rows take 67 instead of
# 76 ms, and 768 take 30 instead of 32.
DEQUANTIZE_FIRST_ROWS = 768


class GemmLaunches(NamedTuple):
    """`expand` is an inline (weights, dequantized, n, launch): a list of buffers, the kernel's last parameter, the
    number of x's rows. For each way to multiply it expands launch(gemm, views), with a `Gemm` and the weights'
    `WeightView`s.

    `dequantize` says whether weights may be dequantized first: only then a kernel has the parameter `dequantized`
    [all outputs, K], its own while it runs.
    """

    expand: Any
    dequantize: bool


def gemm_launches(
    features: int, outputs: Sequence[int], weights: WeightFormat, hardware: CUDA, wide: bool = False, count: int = 1
) -> GemmLaunches:
    """The launches for weights with so many `outputs`, of which a block multiplies by `count`."""
    gemm, view = weight_gemm(features, weights, hardware, wide, count), weight_viewer(weights, features)

    def views(buffers: Sequence[Any]) -> list[WeightView]:
        return [view(buffer) for buffer in buffers]

    if not isinstance(weights, GroupLayout) or gemm.tile.simt:

        @T.inline
        def expand_one(buffers, dequantized, n, launch):
            launch(gemm, views(buffers))

        return GemmLaunches(expand_one, dequantize=False)

    dense = Dense(weights.arithmetic)
    dense_gemm, dense_view = weight_gemm(features, dense, hardware, wide, count), weight_viewer(dense, features)
    dequantize_launch = dequantize_rows(features, weights)
    *firsts, rows = itertools.accumulate(outputs, initial=0)

    def dense_views(dequantized: Any) -> list[WeightView]:
        return [dense_view(dequantized, first) for first in firsts]

    @T.inline
    def expand(buffers, dequantized, n, launch):
        if n >= DEQUANTIZE_FIRST_ROWS:
            dequantize_launch(concatenated_address(views(buffers), outputs), rows, dequantized)
            launch(dense_gemm, dense_views(dequantized))
        else:
            launch(gemm, views(buffers))

    return GemmLaunches(expand, dequantize=True)
