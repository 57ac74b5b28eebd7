"""GEMMs Aᵀ · B, summed over rows, whose operands are computed in shared memory: those of the working memory's write."""

import functools
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, swizzle
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    commit_copies,
    device_function,
    load_matrices_transposed,
    multiply_accumulate,
    wait_copies,
)
from gecko_mlc.tir_kernels.expressions import Expr

THREADS = 256
# Rows of a block's tile.
ROWS = 64
# Values of a tile [64, 64] in shared memory, and of a stage: one tile of A and two of B.
TILE_SIZE = TILE_K * TILE_K
STAGE_SIZE = 3 * TILE_SIZE


@functools.cache
def _mma_transposed(dtype: str) -> device_function:
    """(sums[32] fp32, a, b): sums [64, 128] += Aᵀ · B of a tile [64, 64] at a, and of two, side by side, at b.

    Tiles are swizzled as in `mma`. Each of eight warps has 32 rows and 32 columns.
    """
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    name = f"gecko_multiply_columns_{kind}"
    source = f"""
__device__ __forceinline__ void {name}(float* sums, const void* a, const void* b) {{
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const char* a_row = static_cast<const char*>(a) + (lane / 16 * 8 + lane % 8) * 128;
  const char* b_row = static_cast<const char*>(b) + warp % 4 / 2 * 8192 + lane % 16 * 128;
#pragma unroll
  for (int k = 0; k < 64; k += 16) {{
    unsigned left[2][4], right[4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      gecko_load_matrices_transposed(
          left[i], a_row + k * 128 + ((warp / 4 * 4 + i * 2 + lane / 8 % 2) ^ lane % 8) * 16);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {{
      gecko_load_matrices_transposed(
          right, b_row + k * 128 + ((warp % 2 * 4 + j + lane / 16) ^ lane % 8) * 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {{
        gecko_mma_{kind}(sums + i * 16 + j * 4, left[i], right);
        gecko_mma_{kind}(sums + i * 16 + j * 4 + 4, left[i], right + 2);
      }}
    }}
  }}
}}
"""
    return device_function(name, source, uses=(load_matrices_transposed, multiply_accumulate(dtype)))


class TransposedGemm(NamedTuple):
    """A block computes ROWS rows and `columns` columns of Aᵀ · B, from `tile_k` rows of A and B in a step.

    A thread has `accumulators`, those of `width` neighbouring columns one after another: inline each(body, tx) expands
    body(row, column, at) for the first of them. `run` needs `shared` elements of `dtype` in shared memory.
    """

    columns: int
    tile_k: int
    accumulators: int
    width: int
    shared: int
    dtype: str
    each: Any
    run: Any

    @property
    def simt(self) -> bool:
        """Whether it is computed by FMAs: `run` then is that of `_simt_gemm`, else that of `_mma_gemm`."""
        return self.dtype == "float32"


def transposed_gemm(dtype: str, *columns: int) -> TransposedGemm:
    """The GEMM of operands of `dtype` with such numbers of columns: on the tensor cores if rows are multiples of 16
    bytes."""
    return _simt_gemm() if dtype == "float32" or any(extent % 8 for extent in columns) else _mma_gemm(dtype)


def offset_in_a(i: Expr, tx: Expr) -> Expr:
    """The offset in a stage at which row i * 32 + tx // 8 has its columns from tx % 8 * 8 on."""
    return swizzle(i * 32 + tx // 8, tx % 8)


def offset_in_b(i: Expr, tx: Expr) -> Expr:
    """The offset in a stage at which row i * 16 + tx // 16 has its columns from tx % 16 * 8 on."""
    return (1 + tx % 16 // 8) * TILE_SIZE + swizzle(i * 16 + tx // 16, tx % 8)


@functools.cache
def _mma_gemm(dtype: str) -> TransposedGemm:
    """On the tensor cores, run(start, fetch, prepare, steps, tiles, sums, tx): start(row, column, at) sets the
    accumulators, fetch(stage, step) begins copies into the tiles at `stage`, and prepare(stage, step) computes on them
    when they have arrived.

    A thread has 8 values at each `offset_in_a(i, tx)`, i < 2, and `offset_in_b(i, tx)`, i < 4.
    """
    mma_step = _mma_transposed(dtype)

    @T.inline
    def each(body, tx):
        for i in T.unroll(2):
            for j in T.unroll(4):
                for k in T.unroll(2):
                    body(
                        tx // 128 * 32 + i * 16 + k * 8 + tx % 32 // 4,
                        tx // 32 % 4 * 32 + j * 8 + tx % 4 * 2,
                        i * 16 + j * 4 + k * 2,
                    )

    @T.inline
    def run(start, fetch, prepare, steps, tiles, sums, tx):
        fetch(0, 0)
        commit_copies()
        each(start, tx)
        for step in T.serial(steps):
            wait_copies(0)
            prepare(step % 2 * STAGE_SIZE, step)
            T.tvm_storage_sync("shared")
            # All warps are done with the other stage.
            if step + 1 < steps:
                fetch((step + 1) % 2 * STAGE_SIZE, step + 1)
            commit_copies()
            mma_step(
                T.address_of(sums[0]),
                T.address_of(tiles[step % 2 * STAGE_SIZE]),
                T.address_of(tiles[step % 2 * STAGE_SIZE + TILE_SIZE]),
            )

    return TransposedGemm(128, TILE_K, 32, 2, 2 * STAGE_SIZE, dtype, each, run)


@functools.cache
def _simt_gemm() -> TransposedGemm:
    """In FMAs, run(start, fill, steps, tiles, sums, tx): start(row, column, at) sets the accumulators, fill(k, step)
    writes the thread's element of row k of A to tiles[k * 2 * ROWS + tx % ROWS], and that of B ROWS further on."""
    tile_k, rows_at_once = 16, THREADS // ROWS

    @T.inline
    def each(body, tx):
        for i in T.unroll(4):
            for j in T.unroll(4):
                body(tx // 16 * 4 + i, tx % 16 * 4 + j, i * 4 + j)

    @T.inline
    def run(start, fill, steps, tiles, sums, tx):
        each(start, tx)
        for step in T.serial(steps):
            for i in T.unroll(tile_k // rows_at_once):
                fill(i * rows_at_once + tx // ROWS, step)
            T.tvm_storage_sync("shared")
            for k in T.unroll(tile_k):
                for i in T.unroll(4):
                    for j in T.unroll(4):
                        sums[i * 4 + j] = (
                            sums[i * 4 + j]
                            + tiles[k * 2 * ROWS + tx // 16 * 4 + i] * tiles[(k * 2 + 1) * ROWS + tx % 16 * 4 + j]
                        )
            T.tvm_storage_sync("shared")

    return TransposedGemm(ROWS, tile_k, 16, 1, 2 * tile_k * ROWS, "float32", each, run)
