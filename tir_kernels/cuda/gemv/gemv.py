"""Matrix products of a few rows (GEMV), with the norms before them, for CUDA.

They are bound by the memory's bandwidth: every weight is read once, past the L1 cache, and several 16-byte loads of
each thread are on their way all the time, the first before the predecessor has ended.
"""

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cuda.gemv.dot import dot_gemv
from gecko_mlc.tir_kernels.cuda.gemv.mma import mma_gemv
from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue
from gecko_mlc.tir_kernels.cuda.gemv.quantized import TILE, quantized_gemv
from gecko_mlc.tir_kernels.cuda.gemv.schedule import BLOCKS, GEMV, Matrices
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, quantized_row
from gecko_mlc.tir_kernels.hardware import divide

# What the threads of a block can hold.
MAX_INPUTS = 16384


def gemv(
    features: int,
    extents: tuple[int, ...],
    matrices: Matrices,
    count: int = 1,
    norm: NormPrologue | None = None,
    incoming: QuantizedRow | None = None,
    outgoing: QuantizedRow | None = None,
) -> GEMV:
    """The GEMV with weights [extent, features] of some extents, each with a second one if `count` is 2.

    Several rows go through the tensor cores where weights stand for numbers of 16 bits, and are rounded to them. Rows
    may be quantized already (`incoming`), and blocks make multiples of a vector of `outgoing` ones. Raises `ValueError`
    if a matrix has more than `MAX_INPUTS` inputs.
    """
    weights, rows = matrices.weights, matrices.rows
    if features > MAX_INPUTS:
        raise ValueError(f"{features} inputs of a matrix: at most {MAX_INPUTS} can be decoded with CUDA")
    # Rows of the matrix begin at multiples of 16 bytes.
    aligned = not isinstance(weights, Dense) or features % 8 == 0
    if rows > 1 and weights.arithmetic != "float32" and aligned:
        return mma_gemv(features, extents, weights, rows, count, norm)
    if isinstance(weights, Dense):
        return dot_gemv(features, extents, weights.dtype, count, norm)
    multiple = outgoing.codes if outgoing is not None else None
    return quantized_gemv(features, extents, weights, count, norm, matrices.hardware, incoming, multiple)


def quantized_output(features: int, matrices: Matrices, count: int) -> QuantizedRow | None:
    """How a GEMV's outputs, of `count` weights each, are quantized. None where they are not, or where blocks
    that make multiples of a vector would have more to do than others."""
    outgoing = quantized_row(features, features, matrices.weights, matrices.rows)
    if outgoing is None:
        return None
    largest = outgoing.codes * divide(features // outgoing.codes, BLOCKS)
    tile = TILE // count
    return outgoing if largest <= tile * divide(features, tile * BLOCKS) else None
