"""Codes for GEMVs of several rows on the tensor cores, for CUDA: dequantized to fp16 in pairs as they lie in their
words, one in each half. The activations are stored in the order of the pairs. The weights are scaled: there are fewer
than sums.
"""

import functools
from typing import NamedTuple

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import half_pair

_MANTISSA_BITS = 10


class _Pair(NamedTuple):
    """Two codes of a word, `index` and the one half a word on; where they lie after a shift of the word."""

    index: int
    shift: int
    position: int


def _pairs(layout: GroupLayout) -> list[_Pair]:
    """The pairs of a word, those that lie alike next to each other."""
    pairs, shift = [], 0
    for index in range(layout.codes_per_word // 2):
        bit = layout.shift(index)
        if bit - shift + layout.code_bits > _MANTISSA_BITS:
            shift = bit
        pairs.append(_Pair(index, shift, bit - shift))
    return sorted(pairs, key=lambda pair: (pair.position, pair.shift))


@functools.cache
def store_activations(layout: GroupLayout) -> device_function:
    """(shared destination, word, values fp32): the activations of a vector's word as fp16, in the order of its pairs,
    which are four by four 64 bytes apart."""
    half = layout.codes_per_word // 2
    size = {2: 2, 4: 4}.get(half, 1)
    kind = {1: "unsigned", 2: "uint2", 4: "uint4"}[size]
    name = f"gecko_store_activations_{layout.code_bits}"
    indices = ", ".join(f"{pair.index}, {pair.index + half}" for pair in _pairs(layout))
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(void* destination, int word, const float* values) {{
  const int indices[{2 * half}] = {{{indices}}};
  half rounded[{2 * half}];
#pragma unroll
  for (int i = 0; i < {2 * half}; ++i)
    rounded[i] = __float2half_rn(fminf(fmaxf(values[indices[i]], -65504.0f), 65504.0f));
#pragma unroll
  for (int i = 0; i < {half}; i += {size}) {{
    int pair = word * {half} + i;
    {kind} words;
    memcpy(&words, rounded + 2 * i, {4 * size});
    *reinterpret_cast<{kind}*>(static_cast<unsigned*>(destination) + pair / 4 * 16 + pair % 4) = words;
  }}
}}
""",
    )


# (word, mask, bits): word & mask | bits, of which a compiler makes two instructions where both are constants.
_mask_into = device_function(
    "gecko_mask_into",
    """
__device__ __forceinline__ unsigned gecko_mask_into(unsigned word, unsigned mask, unsigned bits) {
  unsigned result;
  asm volatile("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}
""",
    "uint32",
)


@functools.cache
def dequantize_pairs(layout: GroupLayout) -> device_function:
    """(weights[4] uint32, codes[4] uint32, chunk, scale): the pairs 4·chunk to 4·chunk + 3 of a vector, rounded once to
    fp16. The group's scale is the lower half of `scale`."""
    pairs, code, zero = _pairs(layout), 2**layout.code_bits - 1, layout.quantization.largest
    name = f"gecko_weights_of_codes_{layout.code_bits}"
    # The mantissa of 1024 has room for a code, as many times larger as it lies higher.
    shifts, positions = (", ".join(str(pair[i]) for pair in pairs) for i in (1, 2))
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(unsigned* weights, const unsigned* codes, int chunk, unsigned scale) {{
  const int shifts[{len(pairs)}] = {{{shifts}}}, positions[{len(pairs)}] = {{{positions}}};
  half2 factor = __low2half2(gecko_half2(scale));
#pragma unroll
  for (int i = 0; i < 4; ++i) {{
    int pair = chunk * 4 + i, position = positions[pair % {len(pairs)}];
    unsigned word = codes[pair / {len(pairs)}] >> shifts[pair % {len(pairs)}];
    half2 sum = gecko_half2(gecko_mask_into(word, {code:#x}u * 0x10001u << position, 0x64006400u));
    half unit = 1.0f / (1 << position), least = -1024.0f / (1 << position) - {zero}.0f;
    half2 value = __hmul2(__hfma2(sum, make_half2(unit, unit), make_half2(least, least)), factor);
    memcpy(&weights[i], &value, 4);
  }}
}}
""",
        uses=(half_pair, _mask_into),
    )
