"""Sums and maxima of a warp, and sums in shared memory, of what sampling counts."""

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import device_function

# Σ over the lanes up to the own, and over all lanes, of 64-bit integers.
warp_prefix = device_function(
    "gecko_warp_prefix",
    """
__device__ __forceinline__ unsigned long long gecko_warp_prefix(unsigned long long value) {
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    unsigned long long other = __shfl_up_sync(0xffffffffu, value, distance);
    if (threadIdx.x % 32 >= distance) value += other;
  }
  return value;
}
""",
    "uint64",
)
warp_total = device_function(
    "gecko_warp_total",
    """
__device__ __forceinline__ unsigned long long gecko_warp_total(unsigned long long value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}
""",
    "uint64",
)

# (value, index): the largest value of the lanes, and its lowest index, in every lane.
warp_first_largest = device_function(
    "gecko_warp_first_largest",
    """
__device__ __forceinline__ void gecko_warp_first_largest(float* value, int* index) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, *value, lane);
    int other_index = __shfl_xor_sync(0xffffffffu, *index, lane);
    if (other > *value || (other == *value && other_index < *index)) *value = other, *index = other_index;
  }
}
""",
)

# (address): an integer in shared memory, one more.
count_one = device_function(
    "gecko_count_one",
    """
__device__ __forceinline__ void gecko_count_one(unsigned* address) { atomicAdd(address, 1u); }
""",
)

# (value): hides from the compiler that a value stays, lest it keeps in registers what follows from it.
renew = device_function(
    "gecko_renew",
    """
__device__ __forceinline__ void gecko_renew(float* value) { asm volatile("" : "+f"(*value)); }
""",
)

# (low, high, value): a 64-bit sum in two words, by one atomic addition and seldom a second.
add_wide = device_function(
    "gecko_add_wide",
    """
__device__ __forceinline__ void gecko_add_wide(unsigned* low, unsigned* high, unsigned value) {
  if (value > 0 && atomicAdd(low, value) > 0xffffffffu - value) atomicAdd(high, 1u);
}
""",
)
