"""Activations in fp32."""

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function

# x / (1 + e^-x), to a few ulp.
silu = device_function(
    "gecko_silu",
    """
__device__ __forceinline__ float gecko_silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }
""",
    "float32",
)
