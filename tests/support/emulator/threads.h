// The threads of a block as fibers: each runs until it waits for others. Blocks run one after another.
//
// Shared memory is NaN when a block starts. A barrier or a warp's instruction that some threads never reach is an
// error, and so is a vector at an address that its size does not divide.
#pragma once

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#include "types.h"

#define EMULATOR_SHARED __attribute__((section("gecko_shared")))
#define __shared__ static EMULATOR_SHARED
// The linker's names for the section; it is there for a kernel without shared memory too.
extern "C" __attribute__((visibility("hidden"))) char __start_gecko_shared[], __stop_gecko_shared[];
[[gnu::used]] EMULATOR_SHARED static char emulator_no_shared[1];

static uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kStack = 256 << 10;

struct Copy { void* destination; const void* source; int size, bytes, group; };
struct Thread {
  jmp_buf context;
  uint3 index;
  const void* waits_for;
  bool done;
  // Asynchronous copies that were not waited for, and the group of the next.
  std::vector<Copy> copies;
  int group;
};
struct Barrier { int arrived, line; };
struct Warp { unsigned mask, arrived; const void* instruction; void* lanes[32]; };

static Thread threads[1024];
static Barrier barrier;
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

// The block's barrier, at the same line of the source for all threads.
[[gnu::noinline]] static void meet(int line) {
  if (barrier.arrived == 0) barrier.line = line;
  if (barrier.line != line) fail("a barrier at line %d, while others wait at line %d", line, barrier.line);
  if (++barrier.arrived < thread_count) return wait(&barrier);
  barrier.arrived = 0;
  release(&barrier, 0, thread_count);
}

// An instruction of the warp's lanes in `mask`: the last of them computes it for all.
template <class Operands>
void together(unsigned mask, Operands& mine, void (*instruction)(unsigned, Operands* const*)) {
  Warp& warp = warps[current / 32];
  int lane = current % 32, first = current - lane;
  if (!(mask >> lane & 1) || (thread_count - first < 32 && mask >> (thread_count - first)))
    fail("a warp's instruction for the lanes %x, in lane %d of %d", mask, lane, thread_count - first);
  if (warp.arrived == 0) warp.mask = mask, warp.instruction = reinterpret_cast<const void*>(instruction);
  if (warp.mask != mask || warp.instruction != reinterpret_cast<const void*>(instruction))
    fail("an instruction of the warp, while other lanes wait at another");
  warp.lanes[lane] = &mine;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) return wait(&warp);
  warp.arrived = 0;
  instruction(mask, reinterpret_cast<Operands**>(warp.lanes));
  release(&warp, first, first + 32);
}

template <class T> struct Shuffle { T value; int source; T result; };
template <class T> T shuffle(unsigned mask, T value, int source) {
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

// A thread's turn, on its own stack.
[[gnu::noinline]] static void run(int i, char* stacks, bool first) {
  current = i;
  threadIdx = threads[i].index;
  if (_setjmp(scheduler)) return;
  if (!first) _longjmp(threads[i].context, 1);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + size_t(i) * kStack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, run_thread, 0);
  setcontext(&context);
}

static void run_block(char* stacks, bool first) {
  memset(__start_gecko_shared, 0xff, __stop_gecko_shared - __start_gecko_shared);
  barrier = {};
  memset(warps, 0, sizeof warps);
  for (int i = 0; i < thread_count; ++i) {
    threads[i].waits_for = nullptr;
    threads[i].done = false;
    threads[i].copies.clear();
    threads[i].group = 0;
  }
  int left = thread_count;
  for (int turn = 0; left; ++turn) {
    int ran = 0;
    for (int j = 0; j < thread_count; ++j) {
      // From both ends in turn, as no order can be relied on.
      int i = turn % 2 ? thread_count - 1 - j : j;
      if (threads[i].done || threads[i].waits_for) continue;
      run(i, stacks, first && turn == 0);
      if (*error) return;
      left -= threads[i].done;
      ++ran;
    }
    if (ran) continue;
    snprintf(error, sizeof error, "block (%u, %u, %u): %d of %d threads wait for others, %d of them at line %d",
             blockIdx.x, blockIdx.y, blockIdx.z, left, thread_count, barrier.arrived, barrier.line);
    return;
  }
}

// Runs a grid of a kernel that takes values; an error, or nothing.
template <class... P> const char* launch(const int* extents, const int64_t* values, void (*function)(P...)) {
  gridDim = {unsigned(extents[0]), unsigned(extents[1]), unsigned(extents[2])};
  blockDim = {unsigned(extents[3]), unsigned(extents[4]), unsigned(extents[5])};
  thread_count = blockDim.x * blockDim.y * blockDim.z;
  if (thread_count > 1024) return "more than 1024 threads in a block";
  kernel = [=] {
    [=]<size_t... i>(std::index_sequence<i...>) { function((P)values[i]...); }(std::index_sequence_for<P...>());
  };
  *error = 0;
  for (unsigned i = 0; i < unsigned(thread_count); ++i)
    threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  size_t bytes = size_t(thread_count) * kStack;
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (unsigned block = 0; block < gridDim.x * gridDim.y * gridDim.z && !*error; ++block) {
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    run_block(static_cast<char*>(stacks), block == 0);
  }
  munmap(stacks, bytes);
  return error;
}

// A pointer to a vector.
template <class T> T* aligned(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T)) fail("a vector of %zu bytes is not aligned", sizeof(T));
  return static_cast<T*>(const_cast<void*>(pointer));
}

}  // namespace emulator

#define __syncthreads() emulator::meet(__LINE__)
inline void __syncwarp() { emulator::shuffle(~0u, 0, 0); }
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
template <class T> T atomicAdd(T* address, T value) { return std::exchange(*address, *address + value); }
