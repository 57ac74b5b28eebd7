// CUDA C++ on a CPU: the threads of a block are fibers that run in turn, from one barrier to the next.
//
// Shared memory is NaN when a block starts. What cannot be right on a GPU is an error: a barrier or a warp's instruction
// that a part of the threads never reaches, and vectors at addresses that their size does not divide.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define EMULATOR_SHARED __attribute__((section("gecko_shared")))
#define __shared__ static EMULATOR_SHARED
#define __CUDACC_VER_MAJOR__ 13
#define alignas(bytes) __attribute__((aligned(bytes)))  // wherever CUDA takes it

// Types.

struct alignas(4) half2;
struct half {
  uint16_t bits;
  half() = default;
  half(float value) {
    // Rounded to even at the last bit that a half has, of normal and of subnormal numbers.
    uint32_t word, sign;
    memcpy(&word, &value, 4);
    sign = word >> 16 & 0x8000;
    word &= 0x7fffffff;
    if (word > 0x7f800000) {
      bits = 0x7fff;
    } else if (word >= 0x477ff000) {
      bits = sign | 0x7c00;
    } else if (word >= 0x38800000) {
      bits = sign | ((word - 0x38000000 + 0xfff + (word >> 13 & 1)) >> 13);
    } else {
      float shifted = std::fabs(value) + 0.5f;  // the last bit of 0.5 is a subnormal half's
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
using __half = half;
using __nv_bfloat16 = nv_bfloat16;

#define EMULATOR_VECTORS(type, name)                                                       \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                 \
  struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; };                           \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                         \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
struct alignas(4) half2 { half x, y; };
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
using __half2 = half2;
using __nv_bfloat162 = nv_bfloat162;
inline half2 make_half2(half x, half y) { return {x, y}; }
struct uint1 { unsigned x; };
struct uint3 { unsigned x, y, z; };

inline float __half2float(half value) { return value; }
inline half __float2half(float value) { return value; }
inline half __float2half_rn(float value) { return value; }
inline float __bfloat162float(nv_bfloat16 value) { return value; }
inline nv_bfloat16 __float2bfloat16(float value) { return value; }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
template <class T> bool __hgt(T a, T b) { return float(a) > float(b); }
template <class T> bool __hlt(T a, T b) { return float(a) < float(b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float rsqrtf(float value) { return 1 / sqrtf(value); }
inline float __expf(float value) { return expf(value); }
inline float __uint_as_float(unsigned value) { float bits; memcpy(&bits, &value, 4); return bits; }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }

// Threads.

static uint3 threadIdx, blockIdx, blockDim, gridDim;
// The linker's names of the section's begin and end.
extern char __start_gecko_shared[] __attribute__((visibility("hidden")));
extern char __stop_gecko_shared[] __attribute__((visibility("hidden")));
[[gnu::used]] EMULATOR_SHARED alignas(1024) static char emulator_first_shared[1024];  // else there may be no section

namespace emulator {

constexpr int kStack = 256 << 10;

struct Copy { char* destination; const void* source; int size, bytes, group; };

struct Thread {
  jmp_buf context;
  uint3 index;
  const void* waits_for;
  bool done;
  std::vector<Copy> copies;
  int group;
};
struct Barrier { int arrived, count, line; };
struct Warp { unsigned mask, arrived; const void* instruction; void* lanes[32]; };

static Thread threads[1024];
static Barrier barriers[16];
static Warp warps[32];
static int thread_count, current;
static jmp_buf scheduler;
static std::function<void()> kernel;
static char error[400];

[[noreturn, gnu::noinline, gnu::format(printf, 1, 2)]] static void fail(const char* format, ...) {
  int length = snprintf(error, sizeof error, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x, blockIdx.y,
                        blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error + length, sizeof error - length, format, arguments);
  va_end(arguments);
  _longjmp(scheduler, 1);
}

[[gnu::noinline]] static void leave() {
  if (!_setjmp(threads[current].context)) _longjmp(scheduler, 1);
}

static void wait(const void* what) {
  threads[current].waits_for = what;
  leave();
}

static void release(const void* what, int first, int end) {
  for (int i = first; i < end; ++i)
    if (threads[i].waits_for == what) threads[i].waits_for = nullptr;
}

// A barrier of `count` threads, at one line of the source unless `line` is 0.
[[gnu::noinline]] static void meet(int id, int count, int line) {
  Barrier& barrier = barriers[id];
  if (barrier.arrived == 0) barrier.count = count, barrier.line = line;
  if (barrier.line != line || barrier.count != count)
    fail("barrier %d at line %d, while others wait at line %d", id, line, barrier.line);
  if (++barrier.arrived < count) return wait(&barrier);
  barrier.arrived = 0;
  release(&barrier, 0, thread_count);
}

// An instruction of the warp's lanes in `mask`: the last of them computes it for all.
template <class Operands>
void together(unsigned mask, Operands& mine, void (*instruction)(unsigned, Operands* const*)) {
  Warp& warp = warps[current / 32];
  int lane = current % 32, first = current - lane;
  if (!(mask >> lane & 1) || (thread_count - first < 32 && mask >> (thread_count - first)))
    fail("a warp's instruction with the mask %x, of lane %d", mask, lane);
  if (warp.arrived == 0) warp.mask = mask, warp.instruction = reinterpret_cast<const void*>(instruction);
  if (warp.mask != mask || warp.instruction != reinterpret_cast<const void*>(instruction))
    fail("the lanes of a warp are at different instructions");
  warp.lanes[lane] = &mine;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) return wait(&warp);
  warp.arrived = 0;
  instruction(mask, reinterpret_cast<Operands**>(warp.lanes));
  release(&warp, first, first + 32);
}

template <class T> struct Shuffle { T value; int source; T result; };
template <class T> [[gnu::noinline]] T shuffle(unsigned mask, T value, int source) {
  Shuffle<T> mine{value, source, value};
  together<Shuffle<T>>(mask, mine, [](unsigned mask, Shuffle<T>* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (!(mask >> lanes[i]->source & 1)) fail("a shuffle from lane %d, which takes no part", lanes[i]->source);
      lanes[i]->result = lanes[lanes[i]->source]->value;
    }
  });
  return mine.result;
}

static void run_thread() {
  for (;;) {
    kernel();
    threads[current].done = true;
    leave();
  }
}

// A thread's turn, until it waits or ends.
[[gnu::noinline]] static void run(int i, char* stacks, bool start) {
  current = i;
  threadIdx = threads[i].index;
  if (_setjmp(scheduler)) return;
  if (!start) _longjmp(threads[i].context, 1);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + size_t(i) * kStack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, run_thread, 0);
  setcontext(&context);
}

static void run_block(char* stacks, bool start) {
  memset(__start_gecko_shared, 0xff, __stop_gecko_shared - __start_gecko_shared);
  memset(barriers, 0, sizeof barriers);
  memset(warps, 0, sizeof warps);
  for (int i = 0; i < thread_count; ++i) {
    threads[i].done = false;
    threads[i].waits_for = nullptr;
    threads[i].copies.clear();
    threads[i].group = 0;
  }
  int left = thread_count;
  for (int turn = 0; left; ++turn) {
    int ran = 0;
    for (int j = 0; j < thread_count; ++j) {
      // In turns from both ends: an order that a kernel relies on is not kept.
      int i = turn % 2 ? thread_count - 1 - j : j;
      if (threads[i].done || threads[i].waits_for) continue;
      run(i, stacks, start && turn == 0);
      if (*error) return;
      left -= threads[i].done;
      ++ran;
    }
    if (ran) continue;
    const char* end = error + snprintf(error, sizeof error, "block (%u, %u, %u): %d of %d threads wait for the others", blockIdx.x,
                                 blockIdx.y, blockIdx.z, left, thread_count);
    for (Barrier& barrier : barriers)
      if (barrier.arrived) snprintf(const_cast<char*>(end), 80, ", %d of them at the barrier of line %d", barrier.arrived, barrier.line);
    return;
  }
}

// Runs the grid; the error, empty if there is none.
static const char* launch(const int* extents, std::function<void()> body) {
  gridDim = {unsigned(extents[0]), unsigned(extents[1]), unsigned(extents[2])};
  blockDim = {unsigned(extents[3]), unsigned(extents[4]), unsigned(extents[5])};
  kernel = std::move(body);
  *error = 0;
  thread_count = blockDim.x * blockDim.y * blockDim.z;
  size_t bytes = size_t(thread_count) * kStack;
  char* stacks = static_cast<char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (unsigned i = 0; i < unsigned(thread_count); ++i)
    threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  bool start = true;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x && !*error; ++x) {
        blockIdx = {x, y, z};
        run_block(stacks, start);
        start = false;
      }
  munmap(stacks, bytes);
  return error;
}

// A pointer to a vector, at an address that its size divides.
template <class T> T* aligned(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T)) fail("a vector of %zu bytes is not aligned", sizeof(T));
  return static_cast<T*>(const_cast<void*>(pointer));
}

}  // namespace emulator

#define __syncthreads() emulator::meet(0, emulator::thread_count, __LINE__)
inline void __syncwarp(unsigned mask = ~0u) { emulator::shuffle(mask, 0, emulator::current % 32); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane) { return emulator::shuffle(mask, value, lane % 32); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulator::shuffle(mask, value, emulator::current % 32 ^ bits);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int distance) {
  int lane = emulator::current % 32;
  return emulator::shuffle(mask, value, lane < distance ? lane : lane - distance);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int distance) {
  int lane = emulator::current % 32;
  return emulator::shuffle(mask, value, lane + distance > 31 ? lane : lane + distance);
}

// PTX: an instruction is a function of its operands. An address in shared memory is the distance from its begin.

inline size_t __cvta_generic_to_shared(const void* pointer) {
  const char* place = static_cast<const char*>(pointer);
  if (place < __start_gecko_shared || place >= __stop_gecko_shared) emulator::fail("an address is not in shared memory");
  return place - __start_gecko_shared;
}

namespace emulator {

static char* shared(unsigned address, unsigned bytes) {
  if (address % bytes) fail("%u bytes at %u of shared memory are not aligned", bytes, address);
  if (address + bytes > size_t(__stop_gecko_shared - __start_gecko_shared)) fail("%u is not in shared memory", address);
  return __start_gecko_shared + address;
}

}  // namespace emulator

// Until it is waited for, a copy's destination is NaN.
static void ptx_cp_async_cg_shared_global(unsigned address, const void* source, int size, int bytes) {
  emulator::Thread& thread = emulator::threads[emulator::current];
  char* destination = emulator::shared(address, size);
  if (reinterpret_cast<uintptr_t>(source) % size) emulator::fail("the source of a copy is not aligned");
  memset(destination, 0xff, size);
  thread.copies.push_back({destination, source, size, bytes, thread.group});
}
static void ptx_cp_async_cg_shared_global(unsigned address, const void* source, int size) {
  ptx_cp_async_cg_shared_global(address, source, size, size);
}
static void ptx_cp_async_commit_group() { ++emulator::threads[emulator::current].group; }
static void ptx_cp_async_wait_group(int pending) {
  emulator::Thread& thread = emulator::threads[emulator::current];
  std::vector<emulator::Copy> left;
  for (emulator::Copy& copy : thread.copies) {
    if (copy.group >= thread.group - pending) {
      left.push_back(copy);
      continue;
    }
    memset(copy.destination, 0, copy.size);
    memcpy(copy.destination, copy.source, copy.bytes);
  }
  thread.copies = std::move(left);
}

namespace emulator {

struct Matrices { const uint16_t* row; unsigned registers[4]; };
template <bool transposed> void load_matrices(unsigned address, unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3) {
  Matrices mine{reinterpret_cast<uint16_t*>(shared(address, 16)), {}};
  together<Matrices>(~0u, mine, [](unsigned, Matrices* const* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (unsigned v = 0; v < 2; ++v) {
          int row = lane / 4, column = lane % 4 * 2 + v;
          if (transposed) std::swap(row, column);
          lanes[lane]->registers[i] |= unsigned(lanes[i * 8 + row]->row[column]) << v * 16;
        }
  });
  r0 = mine.registers[0], r1 = mine.registers[1], r2 = mine.registers[2], r3 = mine.registers[3];
}

template <class T> struct Fragments { float sums[4]; T a[8], b[4]; };
template <class T> void multiply(Fragments<T>& mine) {
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
        for (int k = 0; k < 16; ++k)
          lanes[lane]->sums[v] += a[lane / 4 + v / 2 * 8][k] * b[k][lane % 4 * 2 + v % 2];
  });
}

}  // namespace emulator

static void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(
    unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned address) {
  emulator::load_matrices<false>(address, r0, r1, r2, r3);
}
static void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(
    unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned address) {
  emulator::load_matrices<true>(address, r0, r1, r2, r3);
}
#define EMULATOR_MMA(name, type)                                                                                     \
  static void ptx_mma_sync_aligned_m16n8k16_row_col_f32_##name##_##name##_f32(                                       \
      float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,   \
      unsigned b1, float c0, float c1, float c2, float c3) {                                                         \
    unsigned a[] = {a0, a1, a2, a3}, b[] = {b0, b1};                                                                 \
    emulator::Fragments<type> mine{{c0, c1, c2, c3}, {}, {}};                                                        \
    memcpy(mine.a, a, sizeof a);                                                                                     \
    memcpy(mine.b, b, sizeof b);                                                                                     \
    emulator::multiply(mine);                                                                                        \
    d0 = mine.sums[0], d1 = mine.sums[1], d2 = mine.sums[2], d3 = mine.sums[3];                                      \
  }
EMULATOR_MMA(f16, half)
EMULATOR_MMA(bf16, nv_bfloat16)
