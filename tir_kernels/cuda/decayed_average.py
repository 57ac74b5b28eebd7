"""The bias-corrected decayed averages of the timestep norm (specification 8a), for CUDA."""

import math

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function
from gecko_mlc.tir_kernels.expressions import f32

_average_weight = device_function(
    "gecko_average_weight",
    """
__device__ __forceinline__ float gecko_average_weight(float count, float newest, float log_beta) {
  return newest / -expm1f(count * log_beta);
}
""",
    "float32",
)


def average_weight(count, beta):  # type: ignore[no-untyped-def]
    """(1 − β) / (1 − β^count): the weight of the newest value in a decayed average (8a)."""
    return _average_weight(count, f32(1.0 - beta), f32(math.log(beta)))


def token_count(position, slot, chunk_size, done):  # type: ignore[no-untyped-def]
    """Tokens of the stream when `done` of this call are: fp32, exact up to 2^24."""
    return T.Cast("float32", position[slot, 0]) * f32(chunk_size) + T.Cast("float32", position[slot, 1] + done)
