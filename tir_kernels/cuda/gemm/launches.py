"""The launches of a kernel that multiplies by weights, for CUDA.

Tiles of quantized weights are dequantized for each row of tiles again. For many rows of x the weights are dequantized
once, by a launch before that of the product of plain numbers. The host knows how many rows there are, and chooses.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense, GroupLayout, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemm.gemm import weight_product
from gecko_mlc.tir_kernels.cuda.gemm.operands import Matrix, matrix_reader, stacked
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import dequantize_rows
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.kernel import without_parameter

# Rows of x that make up for dequantizing first. On an H200, with 4-bit weights of the 7B, 2048 rows take 67 instead of
# 76 ms, and 768 take 30 instead of 32.
MANY_ROWS = 768


class WeightLaunches(NamedTuple):
    """`expand` is an inline (weights, dequantized, n, launch): a list of buffers, the kernel's last parameter, the
    number of x's rows. For each way to multiply it expands launch(product, matrices), with a `Product` and the
    weights' `Matrix`es.

    `dequantized` [all outputs, K] is the kernel's own while it runs; `sign(kernel)` is the kernel, without it where
    nothing is dequantized into it.
    """

    expand: Any
    sign: Any


def weight_launches(
    features: int, outputs: Sequence[int], weights: WeightFormat, machine: CUDA, wide: bool = False, count: int = 1
) -> WeightLaunches:
    """The launches for weights with so many `outputs`, of which a block multiplies by `count`."""
    product, read = weight_product(features, weights, machine, wide, count), matrix_reader(weights, features)

    def matrices(buffers: Sequence[Any]) -> list[Matrix]:
        return [read(buffer) for buffer in buffers]

    if not isinstance(weights, GroupLayout) or product.tile.stages == 1:

        @T.inline
        def expand_one(buffers, dequantized, n, launch):
            launch(product, matrices(buffers))

        return WeightLaunches(expand_one, lambda kernel: without_parameter(kernel, "dequantized"))

    plain = Dense(weights.arithmetic)
    plain_product, read_plain = weight_product(features, plain, machine, wide, count), matrix_reader(plain, features)
    dequantize = dequantize_rows(features, weights)
    *firsts, rows = itertools.accumulate(outputs, initial=0)

    def plain_matrices(dequantized: Any) -> list[Matrix]:
        return [read_plain(dequantized, first) for first in firsts]

    @T.inline
    def expand(buffers, dequantized, n, launch):
        if n >= MANY_ROWS:
            dequantize(stacked(matrices(buffers), outputs), rows, dequantized)
            launch(plain_product, plain_matrices(dequantized))
        else:
            launch(product, matrices(buffers))

    return WeightLaunches(expand, lambda kernel: kernel)
