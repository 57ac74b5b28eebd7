// CUDA's types and functions of single threads, on a CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct half {
  uint16_t bits;
  half() = default;
  half(float value) {
    uint32_t word, sign;
    memcpy(&word, &value, 4);
    sign = word >> 16 & 0x8000;
    word &= 0x7fffffff;
    if (word > 0x7f800000) {
      bits = 0x7fff;
    } else if (word >= 0x477ff000) {
      bits = sign | 0x7c00;
    } else if (word >= 0x38800000) {
      bits = sign | (word - 0x38000000 + 0xfff + (word >> 13 & 1)) >> 13;
    } else {
      float shifted = std::fabs(value) + 0.5f;  // whose last bit is that of a subnormal half
      memcpy(&word, &shifted, 4);
      bits = sign | (word - 0x3f000000);
    }
  }
  operator float() const {
    uint32_t word = (bits & 0x7fffu) << 13;
    float value;
    memcpy(&value, &word, 4);
    value *= 0x1p112f;
    memcpy(&word, &value, 4);
    if ((bits & 0x7c00) == 0x7c00) word |= 0x7f800000;
    word |= (bits & 0x8000u) << 16;
    memcpy(&value, &word, 4);
    return value;
  }
};

struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    bits = (word & 0x7fffffff) > 0x7f800000 ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
  operator float() const {
    uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
  }
};

struct alignas(4) half2 { half x, y; };
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
using __half = half;
using __half2 = half2;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline half2 __hmul2(half2 a, half2 b) { return {a.x * b.x, a.y * b.y}; }
inline half2 __hfma2(half2 a, half2 b, half2 c) { return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)}; }
inline half2 __hsub2(half2 a, half2 b) { return {a.x - b.x, a.y - b.y}; }
inline half2 __low2half2(half2 a) { return {a.x, a.x}; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned from = selector >> i * 4 & 7;
    result |= ((from < 4 ? a : b) >> from % 4 * 8 & 0xff) << i * 8;
  }
  return result;
}
inline float __half2float(half value) { return value; }
inline half __float2half(float value) { return value; }
inline half __float2half_rn(float value) { return value; }
inline float __bfloat162float(nv_bfloat16 value) { return value; }
inline nv_bfloat16 __float2bfloat16(float value) { return value; }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
template <class T> bool __hgt(T a, T b) { return float(a) > float(b); }
template <class T> bool __hlt(T a, T b) { return float(a) < float(b); }

#define EMULATOR_VECTORS(type, name)                               \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };         \
  struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; };   \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(signed char, char)
EMULATOR_VECTORS(unsigned, uint)
struct alignas(16) ulonglong4 { uint64_t x, y, z, w; };
struct uint1 { unsigned x; };
struct uint3 { unsigned x, y, z; };

#define EMULATOR_EXTREMES(type)                                 \
  inline type max(type a, type b) { return a > b ? a : b; }     \
  inline type min(type a, type b) { return a < b ? a : b; }
EMULATOR_EXTREMES(int)
EMULATOR_EXTREMES(unsigned)
EMULATOR_EXTREMES(int64_t)
EMULATOR_EXTREMES(uint64_t)
// Exact here, and approximations there.
inline float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f ? 0 : a / b; }
inline float __expf(float value) { return expf(value); }
inline float rsqrtf(float value) { return 1 / sqrtf(value); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
#define CUDART_INF_F INFINITY

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define alignas(bytes) __attribute__((aligned(bytes)))  // which may stand where CUDA has it
#define __CUDACC_VER_MAJOR__ 13
