"""Codes for products with one row of activations on the tensor cores, for CUDA: as bytes, and the activations too, in
the order of the words of codes.

An activation is an integer of two bytes, to 2^-15 of the largest of its vector.
"""

import functools
from typing import NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import device_function

from gecko_mlc.group_quantization import GroupLayout

# Steps of the largest activation of a vector, and of the upper one of its two bytes.
LARGEST, UPPER = 127 * 256, 256
# An integer that is added to this fp32 is added to its bits.
INTEGERS, INTEGERS_BITS = 1.5 * 2**23, 0x4B400000


class _Code(NamedTuple):
    """A code of some words."""

    word: int
    index: int


class Portion(NamedTuple):
    """Some `words` of codes, of which words with a code in each byte are made: their `codes`, the lowest byte first."""

    words: int
    codes: list[list[_Code]]


def portion(layout: GroupLayout) -> Portion:
    """What a thread makes bytes of: two pairs of codes for a word, where it can be 8 bits apart in their own. At least
    8 codes, as what a thread does for a portion is as much as for that many."""
    half = layout.codes_per_word // 2
    near = [index for index in range(half) if layout.shift(index) + 8 in map(layout.shift, range(half))]
    words = 1 if layout.code_bits == 4 else 2
    if len(near) * 2 == half:
        step = 8 // layout.code_bits
        twos = [(_Code(word, index), _Code(word, index + step)) for word in range(words) for index in near]
    else:
        pairs = [_Code(word, index) for index in range(half) for word in range(words)]
        twos = list(zip(pairs[::2], pairs[1::2], strict=True))
    return Portion(words, [[*two, *(_Code(code.word, code.index + half) for code in two)] for two in twos])


def piece_bytes(layout: GroupLayout) -> int:
    """Bytes of a vector's activations that are read at a time: of one product, or of two."""
    return 16 if 4 * layout.codes_per_word % 16 == 0 else 8


# (values[4] fp32, byte, flipped, sum int32): a byte of the bits of each, which as signed ones are added to the sum.
_gather_bytes = device_function(
    "gecko_gather_bytes",
    """
__device__ __forceinline__ unsigned gecko_gather_bytes(const float* values, int byte, unsigned flipped, int* sum) {
  unsigned bits[4], two = 0x40 + 0x11 * byte;
  memcpy(bits, values, 16);
  unsigned word = __byte_perm(__byte_perm(bits[0], bits[1], two), __byte_perm(bits[2], bits[3], two), 0x5410) ^ flipped;
#ifdef __CUDA_ARCH__
  *sum = __dp4a(static_cast<int>(word), 0x01010101, *sum);
#else
  for (int i = 0; i < 4; ++i) *sum += static_cast<signed char>(word >> 8 * i);
#endif
  return word;
}
""",
)


@functools.cache
def store_activations_as_bytes(layout: GroupLayout) -> device_function:
    """(shared destination, portion, sums[2] int32, values fp32, steps): the activations of a vector's portion, times
    `steps`, rounded to integers of two bytes, the lower one signed too, in the order of the words of codes; and the
    sums of the upper ones and of the lower ones.

    Pieces of four vectors are next to each other, upper bytes, then those of lower ones.
    """
    codes = portion(layout).codes
    size = piece_bytes(layout) // 4
    name = f"gecko_store_activations_as_bytes_{layout.code_bits}"
    indices = ", ".join(str(code.word * layout.codes_per_word + code.index) for word in codes for code in word)
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(void* destination, int portion, int* sums, const float* values, float steps) {{
  const int indices[{4 * len(codes)}] = {{{indices}}};
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int i = 0; i < {len(codes)}; ++i) {{
    float raised[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) raised[j] = fmaf(values[indices[i * 4 + j]], steps, {INTEGERS + 128}f);
    int word = portion * {len(codes)} + i;
    unsigned* place = static_cast<unsigned*>(destination) + word / {size} * {8 * size} + word % {size};
    place[0] = gecko_gather_bytes(raised, 1, 0, &sums[0]);
    // 128 more turns the lower byte's sign.
    place[{4 * size}] = gecko_gather_bytes(raised, 0, 0x80808080u, &sums[1]);
  }}
}}
""",
        uses=(_gather_bytes,),
    )


# (sums[4] uint32, a[4] uint32, b[2] uint32): sums [16, 8] += a [16, 32] · b [32, 8] of unsigned and signed bytes, in
# the fragments of `mma.m16n8k32`.
_multiply_bytes = device_function(
    "gecko_mma_u8_s8",
    """
__device__ __forceinline__ void gecko_mma_u8_s8(unsigned* sums, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
""",
)


@functools.cache
def multiply_codes(layout: GroupLayout) -> device_function:
    """(sums[4] uint32, codes[8] uint32, activations uint32): sums [16, 8] += codes · activations.

    In the fragments of `mma.m16n8k32`: a lane's codes are 16 bytes of a row and of the eighth after it, the activations
    those of its column, as `store_activations_as_bytes` writes them.
    """
    words, codes = portion(layout)
    mask = (2**layout.code_bits - 1) * 0x10001

    def pair(row: int, begin: int, code: _Code, byte: int) -> str:
        shift = layout.shift(code.index) - 8 * byte
        shifted = f"codes[{row * 4 + begin + code.word}] {'>>' if shift >= 0 else '<<'} {abs(shift)}"
        return f"({shifted} & {mask << 8 * byte:#x}u)"

    made = [(begin, two) for begin in range(0, 4, words) for two in codes]
    lines = []
    for number, (begin, four) in enumerate(made):
        for row in range(2):
            both = " | ".join(pair(row, begin, four[byte], byte) for byte in range(2))
            lines.append(f"left[{number % 2 * 2 + row}] = {both};")
        if number % 2:
            lines.append(f"gecko_mma_u8_s8(sums, left, activations + {number - 1});")
    name = f"gecko_multiply_codes_{layout.code_bits}"
    body = "\n  ".join(lines)
    source = f"""
__device__ __forceinline__ void {name}(unsigned* sums, const unsigned* codes, const unsigned* activations) {{
  unsigned left[4];
  {body}
}}
"""
    return device_function(name, source, uses=(_multiply_bytes,))


def load_scales(dtype: str, count: int) -> device_function:
    """(scales[2] fp32, shared source): two numbers of `dtype`, or one for both."""
    kind = {"float16": "half", "float32": "float"}[dtype]
    name = f"gecko_load_scales_{kind}_{count}"
    vector, first, second = (f"{kind}2", "value.x", "value.y") if count == 2 else (kind, "value", "value")
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(float* scales, const void* source) {{
  {vector} value = *static_cast<const {vector}*>(source);
  scales[0] = static_cast<float>({first}), scales[1] = static_cast<float>({second});
}}
""",
    )
