"""Matrix products of a few rows with the norms before them, for CUDA.

They are bound by the memory's bandwidth: every weight is read once, past the L1 cache, and several 16-byte loads of
each thread are on their way all the time, the first before the predecessor has ended.
"""

from gecko_mlc.tir_kernels.cuda.batch_products import tensor_core_product
from gecko_mlc.tir_kernels.cuda.dot_products import dot_product
from gecko_mlc.tir_kernels.cuda.quantized_rows import quantized_row
from gecko_mlc.tir_kernels.cuda.row_inputs import Norm, Product
from gecko_mlc.tir_kernels.machine import CUDA

from gecko_mlc.group_quantization import Dense, WeightFormat

# What the threads of a block can hold.
MOST_INPUTS = 16384


def row_product(
    features: int,
    extents: tuple[int, ...],
    weights: WeightFormat,
    rows: int,
    machine: CUDA,
    count: int = 1,
    norm: Norm | None = None,
) -> Product:
    """The product for up to `rows` rows with weights [extent, features] of some extents, each with a
    second one if `count` is 2. Several rows go through the tensor
    cores where weights stand for numbers of 16 bits, and are rounded to them."""
    if features > MOST_INPUTS:
        raise ValueError(f"{features} inputs of a matrix: at most {MOST_INPUTS} can be decoded with CUDA")
    whole = not isinstance(weights, Dense) or features % 8 == 0  # rows of whole 16 bytes
    if rows > 1 and weights.arithmetic != "float32" and whole:
        return tensor_core_product(features, extents, weights, rows, count, norm)
    if isinstance(weights, Dense):
        return dot_product(features, extents, weights.dtype, count, norm)
    return quantized_row(features, extents, weights, count, norm, machine)
