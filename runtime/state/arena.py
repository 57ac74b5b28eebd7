"""Memory of the host for tensors that live as long as the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.formats.weights import NUMPY_DTYPES

ALIGNMENT = 64


def arena(tensors: Sequence[TensorSpec]) -> list[np.ndarray]:
    """Bytes for each of `tensors`, aligned, in one piece and in large pages where the system has them: a processor
    reads faster where it has fewer places to look up. Raises `MemoryError` when there is too little."""
    sizes = [math.prod(t.shape) * NUMPY_DTYPES[t.dtype].itemsize for t in tensors]
    places = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    # NumPy asks for large pages.
    piece = np.empty(sum(places) + ALIGNMENT, np.uint8)
    begin, result = -piece.ctypes.data % ALIGNMENT, []
    for size, place in zip(sizes, places, strict=True):
        result.append(piece[begin : begin + size])
        begin += place
    return result
