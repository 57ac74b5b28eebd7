"""Matrix products of a few rows with the norms before them, for CUDA.

They are bound by the memory's bandwidth: every weight is read once, past the L1 cache, and several 16-byte loads of
each thread are on their way all the time, the first before the predecessor has ended.
"""

from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.tir_kernels.cuda.gemv.dot import dot_gemv
from gecko_mlc.tir_kernels.cuda.gemv.mma import mma_gemv
from gecko_mlc.tir_kernels.cuda.gemv.prologue import BLOCKS, Norm, Product
from gecko_mlc.tir_kernels.cuda.quantized.gemv import TILE, quantized_gemv
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, quantized_row
from gecko_mlc.tir_kernels.hardware import CUDA, divide

# What the threads of a block can hold.
MOST_INPUTS = 16384


def gemv(
    features: int,
    extents: tuple[int, ...],
    weights: WeightFormat,
    rows: int,
    machine: CUDA,
    count: int = 1,
    norm: Norm | None = None,
    incoming: QuantizedRow | None = None,
    outgoing: QuantizedRow | None = None,
) -> Product:
    """The product for up to `rows` rows with weights [extent, features] of some extents, each with a
    second one if `count` is 2. Several rows go through the tensor
    cores where weights stand for numbers of 16 bits, and are rounded to them. `incoming` rows are rounded already, the
    products' blocks have whole vectors of `outgoing` ones."""
    if features > MOST_INPUTS:
        raise ValueError(f"{features} inputs of a matrix: at most {MOST_INPUTS} can be decoded with CUDA")
    whole = not isinstance(weights, Dense) or features % 8 == 0  # rows of whole 16 bytes
    if rows > 1 and weights.arithmetic != "float32" and whole:
        return mma_gemv(features, extents, weights, rows, count, norm)
    if isinstance(weights, Dense):
        return dot_gemv(features, extents, weights.dtype, count, norm)
    together = outgoing.codes if outgoing is not None else None
    return quantized_gemv(features, extents, weights, count, norm, machine, incoming, together)


def quantized_output(features: int, weights: WeightFormat, rows: int, count: int) -> QuantizedRow | None:
    """How a product's outputs, of `count` weights each, are rounded. None where they are not, or where blocks of whole
    vectors would have more of them to do than others."""
    outgoing = quantized_row(features, features, weights, rows)
    if outgoing is None:
        return None
    most = outgoing.codes * divide(features // outgoing.codes, BLOCKS)
    tile = TILE // count
    return outgoing if most <= tile * divide(features, tile * BLOCKS) else None
