"""Quantization of activations to bytes, for CUDA: in the prologue of a GEMV with quantized weights, or in the kernel
that makes them, once for all blocks that read them."""

import functools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function, lane_maximum, lane_sum
from gecko_mlc.tir_kernels.cuda.quantized.activations import INTEGERS, LARGEST, QuantizedRow, piece_bytes, portion
from gecko_mlc.tir_kernels.hardware import divide

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
    """(destination, portion, sums[2] int32, values fp32, steps): the activations of a vector's portion, times
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


@functools.cache
def quantize_portion(layout: GroupLayout):  # type: ignore[no-untyped-def]
    """An inline (values, begin, destination, index, present, keep): a vector's portion `index`, `values` from `begin`
    on, into the vector's bytes at `destination`. All lanes of a warp take part, and if it is present keep(kind, fp32)
    is called by one of a vector's. The three kinds: what is taken from its sums, and its factor."""
    per_vector = 4 // portion(layout).words
    size = 4 * layout.codes_per_word // per_vector
    store_portion = store_activations_as_bytes(layout)

    @T.inline
    def compute(values, begin, destination, index, present, keep):
        largest = T.alloc_buffer((1,), scope="local")
        sums = T.alloc_buffer((2,), "int32", scope="local")
        largest[0] = T.float32(0)
        for i in T.unroll(size):
            largest[0] = T.max(largest[0], T.abs(values[begin + i]))
        largest[0] = lane_maximum(per_vector)(largest[0])
        if present:
            store_portion(
                destination,
                index,
                T.address_of(sums[0]),
                T.address_of(values[begin]),
                T.Select(largest[0] > T.float32(0), T.float32(LARGEST) / largest[0], T.float32(0)),
            )
        for i in T.unroll(2):
            sums[i] = lane_sum(per_vector, dtype="int32")(sums[i])
        if tirx.all(present, index == 0):
            # With the code that stands for 0.
            for i in T.unroll(2):
                keep(i, T.float32(INTEGERS) + T.Cast("float32", layout.quantization.largest * sums[i]))
            keep(2, largest[0] * T.float32(1 / LARGEST))

    return compute


def quantize_vectors(quantized: QuantizedRow, count: int, threads: int):  # type: ignore[no-untyped-def]
    """An inline (values, begin, first, present, packed, row, tx): up to `count` vectors, of which so many are present,
    from shared memory, values[begin] on, into a row of `packed` from its vector `first` on. All threads of a block take
    part."""
    per_vector = 4 // portion(quantized.layout).words
    size = quantized.codes // per_vector
    quantize_one = quantize_portion(quantized.layout)

    @T.inline
    def compute(values, begin, first, present, packed, row, tx):
        held = T.alloc_buffer((size,), scope="local")
        for n in T.unroll(divide(count * per_vector, threads)):
            place: T.let = n * threads + tx
            vector: T.let = first + place // per_vector
            for i in T.unroll(size):
                held[i] = T.float32(0)
            if place < present * per_vector:
                for p in T.unroll(size // 4):
                    for v in T.vectorized(4):
                        held[p * 4 + v] = values[begin + place * size + p * 4 + v]

            @T.inline
            def keep(kind, value):
                packed[row, quantized.floats(kind) + vector] = T.reinterpret("uint32", value)

            quantize_one(
                held,
                0,
                T.address_of(packed[row, quantized.vector_word(vector)]),
                place % per_vector,
                place < present * per_vector,
                keep,
            )

    return compute
