"""Codes of quantized weights to fp16 in registers, for CUDA.

The mantissa of 1024 has room for a code: a pair of them is put there, 1024 and the code that stands for 0 are taken
away, which is exact, and the scale is multiplied. That is 4 instructions for two weights of 4 bits, 3 of 8, 5 of 3.
"""

import functools

from gecko_mlc.tir_kernels.cuda.intrinsics import device_function

from gecko_mlc.group_quantization import GroupLayout

# (address, index): the fp16 `index` from the address on, in both halves of a word.
load_scale = device_function(
    "gecko_load_scale",
    """
__device__ __forceinline__ unsigned gecko_load_scale(const void* address, int index) {
  return static_cast<const unsigned short*>(address)[index] * 0x10001u;
}
""",
    "uint32",
)

_half2 = device_function(
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
    """(values[4] uint32, codes[4] uint32, chunk, scale): the weights 8·chunk to 8·chunk + 7 of a vector of codes, as
    neighbouring pairs of fp16, rounded once. `scale` is the group's, in both halves."""
    bits, half, zero = layout.code_bits, layout.codes_per_word // 2, layout.quantization.largest
    # Of a pair, `distance` bits apart, the second code stays where it is: as a mantissa, 2^distance times as large.
    if bits == 8:
        distance = "0"
        pair = "__byte_perm(word, 0x64646464u, 0x4040 | (shift / 8 + 1) << 8 | shift / 8)"
    else:
        distance = f"(index + 1) / {half} * 16 + (index + 1) % {half} * {bits} - shift"
        mask = f"{2**bits - 1}u << 16 + distance | {2**bits - 1}u"
        pair = f"(__byte_perm(word >> shift % 8, 0, shift / 8 * 0x1111) & ({mask})) | 0x64006400u"
    name = f"gecko_dequantize_{bits}"
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(unsigned* values, const unsigned* codes, int chunk, unsigned scale) {{
#pragma unroll
  for (int i = 0; i < 4; ++i) {{
    int first = chunk * 8 + i * 2, index = first % {2 * half};
    int shift = index / {half} * 16 + index % {half} * {bits}, distance = {distance};
    unsigned word = codes[first / {2 * half}], pair = {pair};
    unsigned unit = (15u - distance) << 26 | 15u << 10;
    unsigned least = (57u - distance) << 26 | {zero}u << 16 + distance | 57u << 10 | {zero}u;
    half2 weights = __hmul2(__hfma2(gecko_half2(pair), gecko_half2(unit), gecko_half2(least)), gecko_half2(scale));
    memcpy(&values[i], &weights, 4);
  }}
}}
""",
        uses=(_half2,),
    )
