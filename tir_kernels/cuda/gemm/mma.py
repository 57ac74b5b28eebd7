"""MMAs of tiles in shared memory on the tensor cores: `wgmma` on sm_90, `mma` elsewhere.

A tile has rows of 64 16-bit values, 128 bytes, at an address that 1024 divides. The 16 bytes of chunk k in row r lie
at chunk k XOR r mod 8: the 128-byte swizzle of `wgmma`, free of bank conflicts for `ldmatrix`.

Four warps multiply 64 rows. Of accumulators [64, N], thread t of the 128 holds in sums[4·j + 2·i + v] row
16·(t / 32) + (t mod 32) / 4 + 8·i and column 8·j + 2·(t mod 4) + v, on every architecture.
"""

import functools

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    device_function,
    load_matrices,
    load_matrices_transposed,
    multiply_accumulate,
)
from gecko_mlc.tir_kernels.expressions import Expr

TILE_K = 64  # values in a row of a tile


def swizzle(row: Expr, chunk: Expr) -> Expr:
    """The offset, in 16-bit values, of the 16 bytes `chunk` of a tile's row."""
    return row * TILE_K + T.bitwise_xor(chunk, row % 8) * 8


def _registers(count: int, first: int = 0) -> str:
    return ", ".join(f"%{first + i}" for i in range(count))


@functools.cache
def mma_tiles(dtype: str, columns: int, transposed: bool) -> device_function:
    """(sums[columns / 2] fp32, a, b): begin sums [64, columns] += A · B over 64 values of K.

    a is the address of a tile [64, 64] of A, K in its rows. b is that of a tile [columns, 64] with K in its rows or,
    `transposed`, of columns / 64 tiles [64, 64], one after another, with K in their columns.
    """
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    sums = columns // 2
    name = f"gecko_multiply_tiles_{kind}_{columns}{'_transposed' if transposed else ''}"
    # Bytes from 16 summed values of B to the next, from 8 rows to the next, from 64 columns to the next.
    step_b, leading = (2048, 8192) if transposed else (32, 16)
    wgmma = f"""
  constexpr unsigned long long kSwizzle = 1ull << 62, kEightRows = 64ull << 32;
  unsigned a_address = static_cast<unsigned>(__cvta_generic_to_shared(a));
  unsigned b_address = static_cast<unsigned>(__cvta_generic_to_shared(b));
#pragma unroll
  for (int i = 0; i < {sums}; ++i) asm volatile("" : "+f"(sums[i])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < 4; ++k) {{
    unsigned long long a_tile = kSwizzle | kEightRows | (1ull << 16) | ((a_address + k * 32) >> 4 & 0x3fff);
    unsigned long long b_tile =
        kSwizzle | kEightRows | ({leading // 16}ull << 16) | ((b_address + k * {step_b}) >> 4 & 0x3fff);
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
        "{{{_registers(sums)}}}, %{sums}, %{sums + 1}, 1, 1, 1, 0, {int(transposed)};"
        : {", ".join(f'"+f"(sums[{i}])' for i in range(sums))}
        : "l"(a_tile), "l"(b_tile));
  }}
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");"""
    load_b = (
        """const char* row = static_cast<const char*>(b) + (n / 64) * 8192 + (k * 16 + lane % 16) * 128;
      gecko_load_matrices_transposed(right, row + ((n % 64 / 8 + lane / 16) ^ lane % 8) * 16);"""
        if transposed
        else """const char* row = static_cast<const char*>(b) + (n + lane % 8 + lane / 16 * 8) * 128;
      gecko_load_matrices(right, row + ((k * 2 + lane / 8 % 2) ^ lane % 8) * 16);"""
    )
    source = f"""
__device__ __forceinline__ void {name}(float* sums, const void* a, const void* b) {{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL{wgmma}
#else
  int lane = threadIdx.x % 32;
  const char* a_row = static_cast<const char*>(a) + (threadIdx.x / 32 % 4 * 16 + lane % 16) * 128;
#pragma unroll
  for (int k = 0; k < 4; ++k) {{
    unsigned left[4];
    gecko_load_matrices(left, a_row + ((k * 2 + lane / 16) ^ lane % 8) * 16);
#pragma unroll
    for (int n = 0; n < {columns}; n += 16) {{
      unsigned right[4];
      {load_b}
      gecko_mma_{kind}(sums + n / 2, left, right);
      gecko_mma_{kind}(sums + n / 2 + 4, left, right + 2);
    }}
  }}
#endif
}}
"""
    uses = (load_matrices, load_matrices_transposed, multiply_accumulate(dtype))
    return device_function(name, source, uses=uses)


@functools.cache
def wait_mma(count: int, pending: int = 0) -> device_function:
    """(sums[count]): wait until all MMAs but the newest `pending` are in the sums, and no longer read their tiles."""
    name = f"gecko_finish_tiles_{count}_{pending}"
    return device_function(
        name,
        f"""
__device__ __forceinline__ void {name}(float* sums) {{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned {pending};" ::: "memory");
#pragma unroll
  for (int i = 0; i < {count}; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}}
""",
    )


# The tensor cores see what the thread wrote to shared memory after the next barrier.
fence_shared = device_function(
    "gecko_publish_tiles",
    """
__device__ __forceinline__ void gecko_publish_tiles() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
""",
)
