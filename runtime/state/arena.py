"""Memory of a device for tensors that live as long as the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.runtime.players import tvm_runtime

_CPU = 1  # DLPack's number
_ALIGNMENT = 64


class Memory:
    """Memory for given tensors on `device`. A CPU's is one piece, in large pages where the system has them: a
    processor reads faster where it has fewer places to look up. Raises what the system says when there is too little.
    """

    def __init__(self, device: Any, tensors: Sequence[TensorSpec]) -> None:
        self._tvm, self._device = tvm_runtime.load(), device
        self._on_cpu = device.dlpack_device_type() == _CPU
        size = sum(self._nbytes(t.shape, t.dtype) + _ALIGNMENT for t in tensors) if self._on_cpu else 0
        # NumPy asks for large pages.
        self._piece = np.empty(size + _ALIGNMENT, np.uint8)
        self._taken = -self._piece.ctypes.data % _ALIGNMENT

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """One of the tensors, its elements not set."""
        if not self._on_cpu:
            return self._tvm.runtime.empty(shape, dtype, self._device)
        size = self._nbytes(shape, dtype)
        part = self._piece[self._taken : self._taken + size]
        self._taken += -(-size // _ALIGNMENT) * _ALIGNMENT
        # NumPy has no bfloat16 to exchange.
        bits = self._tvm.runtime.from_dlpack(part)
        return bits._create_view(shape or (1,), dtype)

    def _nbytes(self, shape: Sequence[int], dtype: str) -> int:
        return math.prod(shape) * int(self._tvm.DataType(dtype).bits) // 8
