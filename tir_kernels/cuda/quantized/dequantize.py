"""Codes of quantized weights to fp16, for CUDA: in registers, or rows in memory.

A byte with a code becomes the mantissa of a power of two that it is added to. Taking that and the code that
stands for 0 away is exact; then the scale is multiplied. It is four instructions for two weights of 4 bits, three
for 8 bits, five for 3 bits.
"""

import functools
import math

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function, store_registers
from gecko_mlc.tir_kernels.hardware import divide

# Of `dequantize_rows`: threads of a block, and chunks of 8 weights that each has on their way.
THREADS, CHUNKS = 128, 4

# (address, index): the bits of the fp16 `index` from the address on.
load_scale = device_function(
    "gecko_load_scale",
    """
__device__ __forceinline__ unsigned gecko_load_scale(const void* address, int index) {
  return static_cast<const unsigned short*>(address)[index];
}
""",
    "uint32",
)

# (uint32): its halves as a pair of fp16.
half_pair = device_function(
    "gecko_half2",
    """
__device__ __forceinline__ half2 gecko_half2(unsigned bits) {
  half2 value;
  memcpy(&value, &bits, 4);
  return value;
}
""",
)


@functools.cache
def dequantize(layout: GroupLayout) -> device_function:
    """(values[4] uint32, codes, chunk, scale): the weights 8·chunk to 8·chunk + 7 of the codes in the uint32 from that
    address on, as neighbouring pairs of fp16, rounded once. `scale` are the bits of the group's."""
    bits, half, zero = layout.code_bits, layout.codes_per_word // 2, layout.quantization.largest
    code = 2**bits - 1
    # A pair begins at bit `shift` of its word, in a byte. That of the second code is the next one, or the same, where
    # it is `up` bits above the first: its power of two is that much smaller.
    up = "0" if bits == 8 else f"(index + 1) / {half} * 16 + (index + 1) % {half} * {bits} - shift"
    name = f"gecko_dequantize_{bits}"
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(unsigned* values, const void* codes, int chunk, unsigned scale) {{
#pragma unroll
  for (int i = 0; i < 4; ++i) {{
    int first = chunk * 8 + i * 2, index = first % {2 * half};
    int shift = index / {half} * 16 + index % {half} * {bits}, up = {up};
    unsigned word = static_cast<const unsigned*>(codes)[first / {2 * half}] >> shift % 8, byte = shift / 8;
    unsigned powers = (25u - up) << 26 | 25u << 10;
    unsigned pair = __byte_perm(word, powers, 0x7050 | (byte + {int(bits == 8)}) << 8 | byte);
    pair &= 0xff00ff00u | {code}u << 16 + up | {code}u;
    half2 zero = gecko_half2(powers | {zero}u << 16 + up | {zero}u);
    half2 weights = __hmul2(__hsub2(gecko_half2(pair), zero), __low2half2(gecko_half2(scale)));
    memcpy(&values[i], &weights, 4);
  }}
}}
""",
        uses=(half_pair,),
    )


def dequantize_rows(features: int, layout: GroupLayout):  # type: ignore[no-untyped-def]
    """An inline (address, rows, weights): a launch that writes weights [rows, `features`] fp16, where address(o, i) is
    that of word i in the memory of row o. Lanes of a warp store neighbouring chunks."""
    # So many chunks, and then the next, begin with a word.
    period = math.lcm(layout.codes_per_word, 8) // 8
    words = period * 8 // layout.codes_per_word
    chunks, offset = features // 8, layout.scale_offset(features)
    dequantize_chunk = dequantize(layout)

    @T.inline
    def launch(address, rows, weights):
        with T.launch_thread("blockIdx.x", rows) as row:
            part = T.launch_thread("blockIdx.y", divide(chunks, CHUNKS * THREADS))
            tx = T.launch_thread("threadIdx.x", THREADS)
            values = T.alloc_buffer((4,), "uint32", scope="local")
            for i in T.unroll(CHUNKS):
                chunk: T.let = (part * CHUNKS + i) * THREADS + tx
                if chunk < chunks:
                    dequantize_chunk(
                        T.address_of(values[0]),
                        address(row, chunk // period * words),
                        chunk % period,
                        load_scale(address(row, offset), chunk * 8 // layout.quantization.group_size),
                    )
                    store_registers(T.address_of(weights[row, chunk * 8]), T.address_of(values[0]))

    return launch
