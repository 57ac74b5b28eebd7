"""MMAs of tiles in shared memory, in their layouts.

What runs here is `mma` and `ldmatrix`, of the GPUs before sm_90; `wgmma`, which sm_90 has instead, is not executed.
"""

from __future__ import annotations

import functools

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
from support.launch import floats
from support.launch_cuda import launch_cuda
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, fence_shared, mma_tiles, swizzle, wait_mma
from gecko_mlc.tir_kernels.kernel import kernel

THREADS = 128


@functools.cache
def product(dtype: str, columns: int, transposed: bool) -> tirx.PrimFunc:
    """Kernel (a [64, 64], b [columns, 64] or, transposed, [64, columns]) → 1 + a · b [64, columns] fp32."""
    multiply, wait = mma_tiles(dtype, columns, transposed), wait_mma(columns // 2)

    def place(row, column):  # type: ignore[no-untyped-def]
        """Of a value in tiles [64, 64] side by side, or in one tile."""
        return column // TILE_K * 64 * TILE_K + swizzle(row, column % TILE_K // 8) + column % 8

    @kernel
    def compute(
        a: T.Buffer((64, TILE_K), dtype),
        b: T.Buffer((TILE_K, columns) if transposed else (columns, TILE_K), dtype),
        y: T.Buffer((64, columns), "float32"),
    ):
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer(((64 + columns) * TILE_K,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((columns // 2,), scope="local")
        for i in T.serial(64 * TILE_K // THREADS):
            e: T.let = i * THREADS + tx
            tiles[place(e // TILE_K, e % TILE_K)] = a[e // TILE_K, e % TILE_K]
        for i in T.serial(columns * TILE_K // THREADS):
            e: T.let = i * THREADS + tx
            if transposed:
                tiles[64 * TILE_K + place(e // columns, e % columns)] = b[e // columns, e % columns]
            else:
                tiles[64 * TILE_K + place(e // TILE_K, e % TILE_K)] = b[e // TILE_K, e % TILE_K]
        for i in T.unroll(columns // 2):
            sums[i] = T.float32(1)
        fence_shared()
        T.tvm_storage_sync("shared")
        multiply(T.address_of(sums[0]), T.address_of(tiles[0]), T.address_of(tiles[64 * TILE_K]))
        wait(T.address_of(sums[0]))
        for j in T.unroll(columns // 8):
            for i in T.unroll(2):
                for v in T.unroll(2):
                    y[tx // 32 * 16 + tx % 32 // 4 + 8 * i, 8 * j + 2 * (tx % 4) + v] = sums[4 * j + 2 * i + v]

    return compute


@pytest.mark.parametrize(
    ("dtype", "columns", "transposed"),
    [("float16", 128, False), ("bfloat16", 64, False), ("float16", 64, True), ("bfloat16", 128, True)],
)
def test_mma_tiles(dtype: str, columns: int, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (floats(rng, rows, TILE_K).astype(dtype) for rows in (64, columns))
    y = np.full((64, columns), np.nan, np.float32)
    launch_cuda(product(dtype, columns, transposed), a, np.ascontiguousarray(b.T) if transposed else b, y)
    np.testing.assert_allclose(y, 1 + a.astype(float) @ b.astype(float).T, atol=2e-5)
