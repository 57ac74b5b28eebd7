"""Codes for GEMVs of one row on the tensor cores, for CUDA: multiplied as bytes, in the order of their words."""

import functools

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function
from gecko_mlc.tir_kernels.cuda.quantized.activations import Code, portion

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

    def pair(row: int, begin: int, code: Code, byte: int) -> str:
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
