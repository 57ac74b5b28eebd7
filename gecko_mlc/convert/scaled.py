"""Weights in 8-bit floats, with a tensor of scales beside: `NAME_scale` or, as DeepSeek calls it, `NAME_scale_inv`.

Either is what the codes are multiplied with: one number, one of each row, or one of each block of rows and columns.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from gecko_mlc.convert.tensors import Checkpoint, TensorType
from gecko_mlc.formats.errors import GeckoError

_CODES = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
_SCALES = {np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu)}
_SUFFIXES = ("_scale", "_scale_inv")


class Scaled(Checkpoint):
    """Another checkpoint, whose 8-bit floats are read as fp32, multiplied with their scales.

    Raises `GeckoError` for scales that do not say what of a tensor they belong to.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        tensors = dict(checkpoint.tensors)
        self._checkpoint = checkpoint
        self._scales: dict[str, str | None] = {}
        for name, (shape, dtype) in checkpoint.tensors.items():
            if dtype not in _CODES:
                continue
            tensors[name] = TensorType(shape, np.dtype(np.float32))
            beside = [name + suffix for suffix in _SUFFIXES if name + suffix in checkpoint.tensors]
            if len(beside) > 1:
                raise GeckoError(f"{name} is in 8 bits with both {' and '.join(beside)}; expected one of them")
            self._scales[name] = beside[0] if beside else None
            for scale in beside:
                self._check(name, shape, scale)
                del tensors[scale]
        super().__init__(tensors, checkpoint.identity)

    def read(self, name: str) -> np.ndarray:
        """The tensor, in fp32 where it is in 8 bits."""
        value = self._checkpoint.read(name)
        if name not in self._scales:
            return value
        value = value.astype(np.float32)
        if (scale := self._scales[name]) is None:
            return value
        scales = self._checkpoint.read(scale).astype(np.float32)
        blocks = _blocks(value.shape, scales.shape)
        assert blocks is not None  # It was checked.
        rows, columns = blocks
        tiles = value.reshape(rows, value.shape[0] // rows, columns, -1)
        tiles *= scales.reshape(rows, 1, columns, 1)
        return value

    def _check(self, name: str, shape: tuple[int, ...], scale: str) -> None:
        scales = self._checkpoint.tensors[scale]
        if scales.dtype not in _SCALES or _blocks(shape, scales.shape) is None:
            raise GeckoError(
                f"{name} {list(shape)} is in 8 bits, and its {scale} {list(scales.shape)} {scales.dtype} does not say"
                " how to scale it: expected one number, one of each row, or one of each block of sizes that divide it;"
                " save it in 16 or 32 bits"
            )


def _blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """Blocks of rows and of columns that the scales of a matrix belong to; None where that cannot be told."""
    if not all(shape) or not shape:
        return None
    if math.prod(scales) == 1:
        return 1, 1
    if scales in ((shape[0],), (shape[0], 1)):
        return shape[0], 1
    if len(shape) == len(scales) == 2 and all(
        n > 0 and extent % n == 0 for extent, n in zip(shape, scales, strict=True)
    ):
        return scales[0], scales[1]
    return None
