"""What tests of GEMMs share: hardware, operands, results to fill, how close a result is.

Tensor cores are those of the GPUs before sm_90: its `wgmma` is not executed by the emulator. What surrounds it is,
with the stages of its pipeline.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.tir_kernels.hardware import CUDA
from support.launch_cuda import launch_cuda
from support.weights import format_of, weights_in_memory

F16, BF16, F32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
BOTH, SM_90, SM_86 = CUDA((80, 90)), CUDA((90,)), CUDA((86,))


def matrix(rng: np.random.Generator, outputs: int, inputs: int, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix, as it lies in memory and as it is multiplied: on tensor cores, in 16 bits."""
    memory, weight = weights_in_memory(rng, outputs, inputs, scheme)
    return memory, weight if inputs % 8 else weight.astype(activations(scheme))


def activations(scheme: str) -> np.dtype[Any]:
    return NUMPY_DTYPES[format_of(scheme).arithmetic]


def empty(rows: int, columns: int, dtype: Any = F32) -> np.ndarray:
    return np.full((rows, columns), np.nan, dtype)


def launch_in(kernel: Any, *arguments: np.ndarray) -> np.ndarray | None:
    """Launch a kernel; what it had for itself, if anything."""
    scratch = [empty(*map(int, p.shape), NUMPY_DTYPES[str(p.dtype)]) for p in kernel.params[len(arguments) :]]
    launch_cuda(kernel, *arguments, *scratch)
    return scratch[0] if scratch else None


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """Sums are fp32; what is stored in 16 bits has been rounded once."""
    eps = 0 if result.dtype == F32 else float(ml_dtypes.finfo(result.dtype).eps)
    np.testing.assert_allclose(result.astype(float), expected, rtol=eps, atol=1e-5)
