// PTX instructions as functions of their operands. An address in shared memory is the distance from its begin.
#pragma once

#include "threads.h"

inline size_t __cvta_generic_to_shared(const void* pointer) {
  const char* place = static_cast<const char*>(pointer);
  if (place < __start_gecko_shared || place >= __stop_gecko_shared) emulator::fail("this is not in shared memory");
  return place - __start_gecko_shared;
}

namespace emulator {

static void* shared(unsigned address, unsigned bytes) {
  if (address % bytes) fail("%u bytes at %u of shared memory are not aligned", bytes, address);
  if (address + bytes > size_t(__stop_gecko_shared - __start_gecko_shared)) fail("%u is not in shared memory", address);
  return __start_gecko_shared + address;
}

struct Matrices { const uint16_t* row; unsigned registers[4]; };
template <bool transposed>
void load_matrices(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned address) {
  Matrices mine{static_cast<uint16_t*>(shared(address, 16)), {}};
  together<Matrices>(~0u, mine, [](unsigned, Matrices* const* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int v = 0; v < 2; ++v) {
          int row = lane / 4, column = lane % 4 * 2 + v;
          if (transposed) std::swap(row, column);
          lanes[lane]->registers[i] |= unsigned(lanes[i * 8 + row]->row[column]) << v * 16;
        }
  });
  r0 = mine.registers[0], r1 = mine.registers[1], r2 = mine.registers[2], r3 = mine.registers[3];
}

template <class T> struct Fragments { float sums[4]; T a[8], b[4]; };
template <class T> void multiply_accumulate(Fragments<T>& mine) {
  together<Fragments<T>>(~0u, mine, [](unsigned, Fragments<T>* const* lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 8; ++v) {
        int row = lane / 4, k = lane % 4 * 2 + v % 2;
        a[row + v / 2 % 2 * 8][k + v / 4 * 8] = lanes[lane]->a[v];
        if (v < 4) b[k + v / 2 * 8][row] = lanes[lane]->b[v];
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 4; ++v)
        for (int k = 0; k < 16; ++k) lanes[lane]->sums[v] += a[lane / 4 + v / 2 * 8][k] * b[k][lane % 4 * 2 + v % 2];
  });
}

struct ByteFragments { int sums[4]; uint8_t a[16]; int8_t b[8]; };
inline void multiply_accumulate_bytes(ByteFragments& mine) {
  together<ByteFragments>(~0u, mine, [](unsigned, ByteFragments* const* lanes) {
    int a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 16; ++v) {
        int row = lane / 4, k = lane % 4 * 4 + v % 4;
        a[row + v / 4 % 2 * 8][k + v / 8 * 16] = lanes[lane]->a[v];
        if (v < 8) b[k + v / 4 * 16][row] = lanes[lane]->b[v];
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 4; ++v)
        for (int k = 0; k < 32; ++k) lanes[lane]->sums[v] += a[lane / 4 + v / 2 * 8][k] * b[k][lane % 4 * 2 + v % 2];
  });
}

}  // namespace emulator

// What is copied is NaN until it is waited for.
inline void ptx_cp_async_cg_shared_global(unsigned address, const void* source, int size, int bytes) {
  emulator::Thread& thread = emulator::threads[emulator::current];
  void* destination = emulator::shared(address, size);
  if (reinterpret_cast<uintptr_t>(source) % size) emulator::fail("the source of a copy is not aligned");
  memset(destination, 0xff, size);
  thread.copies.push_back({destination, source, size, bytes, thread.group});
}
#define ptx_cp_async_ca_shared_global ptx_cp_async_cg_shared_global
inline void ptx_cp_async_cg_shared_global(unsigned address, const void* source, int size) {
  ptx_cp_async_cg_shared_global(address, source, size, size);
}
inline void ptx_cp_async_commit_group() { ++emulator::threads[emulator::current].group; }
inline void ptx_cp_async_wait_group(int pending) {
  emulator::Thread& thread = emulator::threads[emulator::current];
  std::vector<emulator::Copy> left;
  for (const emulator::Copy& copy : thread.copies) {
    if (copy.group >= thread.group - pending) {
      left.push_back(copy);
      continue;
    }
    memset(copy.destination, 0, copy.size);
    memcpy(copy.destination, copy.source, copy.bytes);
  }
  thread.copies = std::move(left);
}

inline void ptx_lop3_b32(unsigned& d, unsigned a, unsigned b, unsigned c, unsigned table) {
  d = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
}

inline void ptx_ex2_approx_ftz_f32(float& d, float x) { d = exp2f(x); }

#define ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16 emulator::load_matrices<false>
#define ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16 emulator::load_matrices<true>

#define EMULATOR_MMA(name, type)                                                                                   \
  inline void ptx_mma_sync_aligned_m16n8k16_row_col_f32_##name##_##name##_f32(                                     \
      float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, \
      unsigned b1, float c0, float c1, float c2, float c3) {                                                       \
    unsigned a[] = {a0, a1, a2, a3}, b[] = {b0, b1};                                                               \
    emulator::Fragments<type> mine{{c0, c1, c2, c3}, {}, {}};                                                      \
    memcpy(mine.a, a, sizeof a);                                                                                   \
    memcpy(mine.b, b, sizeof b);                                                                                   \
    emulator::multiply_accumulate(mine);                                                                           \
    d0 = mine.sums[0], d1 = mine.sums[1], d2 = mine.sums[2], d3 = mine.sums[3];                                    \
  }
EMULATOR_MMA(f16, half)
EMULATOR_MMA(bf16, nv_bfloat16)

inline void ptx_mma_sync_aligned_m16n8k32_row_col_s32_u8_s8_s32(
    unsigned& d0, unsigned& d1, unsigned& d2, unsigned& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
    unsigned b0, unsigned b1, unsigned c0, unsigned c1, unsigned c2, unsigned c3) {
  unsigned a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
  emulator::ByteFragments mine{{int(c0), int(c1), int(c2), int(c3)}, {}, {}};
  memcpy(mine.a, a, sizeof a);
  memcpy(mine.b, b, sizeof b);
  emulator::multiply_accumulate_bytes(mine);
  d0 = mine.sums[0], d1 = mine.sums[1], d2 = mine.sums[2], d3 = mine.sums[3];
}
