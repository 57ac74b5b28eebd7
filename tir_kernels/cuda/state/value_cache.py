"""Values of eight bits on CUDA: the codes of a prefill's tokens, and codes as numbers that tensor cores multiply."""

import functools
import math

from tvm import DataType, tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function, warp_maximum, widen_vector
from gecko_mlc.tir_kernels.expressions import loader
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window
from gecko_mlc.tir_kernels.value_cache import code_of, inverse_of, scale_of

WARPS = 8


@functools.cache
def widen_codes(dtype: str) -> device_function:
    """(values[4] uint32, codes, scale fp32): the eight values of `dtype` that 8 bytes of codes stand for."""
    kind, convert, largest = {
        # What a cache of float16 would hold: its largest number is no infinity.
        "float16": ("half", "__float2half_rn", "fminf(fmaxf(value, -65504.0f), 65504.0f)"),
        "bfloat16": ("nv_bfloat16", "__float2bfloat16_rn", "value"),
    }[dtype]
    widen, name = widen_vector("int8"), f"gecko_widen_codes_{dtype}"
    source = f"""
__device__ __forceinline__ void {name}(unsigned* values, const void* codes, float scale) {{
  uint2 words = *static_cast<const uint2*>(codes);
  {kind} numbers[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4) {{
    float widened[4];
    {widen.name}(widened, i ? &words.y : &words.x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {{
      float value = widened[k] * scale;
      numbers[i + k] = {convert}({largest});
    }}
  }}
  memcpy(values, numbers, 16);
}}
"""
    return device_function(name, source, uses=(widen,))


@functools.cache
def quantize_values(window: Window, dtype: str) -> tirx.PrimFunc:
    """Kernel (v [n, E] of `dtype`, slots [1], position, values [S, 2, C, E] int8, value_scales [S, 2, C, H]).

    The values of tokens that stay within a chunk, into the slot's rows of the cache. A warp for each token and head.
    """
    value_dim, heads, size = window.value_dim, window.heads, window.value_head_dim
    width = math.gcd(size, 128 // DataType(dtype).bits)
    vectors = size // width
    rounds, warps = divide(vectors, 32), min(heads, WARPS)
    load = loader(dtype)

    @kernel
    def quantize(
        v_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((window.slots, 2), "int32"),
        values: T.Buffer(window.values, "int8"),
        value_scales: T.Buffer(window.value_scales, "float32"),
    ):
        n = T.int32()
        fresh = T.match_buffer(v_handle, (n, value_dim), dtype)
        row = T.launch_thread("blockIdx.x", n)
        block = T.launch_thread("blockIdx.y", divide(heads, warps))
        tx = T.launch_thread("threadIdx.x", 32 * warps)
        held = T.alloc_buffer((rounds, width), dtype, scope="local")
        codes = T.alloc_buffer((width,), "int8", scope="local")
        largest = T.alloc_buffer((1,), scope="local")
        inverse = T.alloc_buffer((1,), scope="local")
        lane: T.let = tx % 32
        head: T.let = block * warps + tx // 32
        slot: T.let = slot_ids[0]
        parity: T.let = position[slot, 0] % 2
        offset: T.let = position[slot, 1] + row
        if head < heads:
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for v in T.vectorized(width):
                        held[r, v] = fresh[row, head * size + (r * 32 + lane) * width + v]
            largest[0] = T.float32(0)
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for v in T.unroll(width):
                        largest[0] = T.max(largest[0], T.abs(load(held, r, v)))
            largest[0] = warp_maximum(largest[0])
            inverse[0] = inverse_of(largest[0])
            if lane == 0:
                value_scales[slot, parity, offset, head] = scale_of(largest[0])
            for r in T.unroll(rounds):
                if r * 32 + lane < vectors:
                    for v in T.unroll(width):
                        codes[v] = code_of(load(held, r, v), inverse[0])
                    for v in T.vectorized(width):
                        values[slot, parity, offset, head * size + (r * 32 + lane) * width + v] = codes[v]

    return quantize
