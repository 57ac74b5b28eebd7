"""Products of tiles in shared memory, in their layouts.

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

from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH, finish_tiles, multiply_tiles, publish_tiles, swizzled

THREADS = 128


@functools.cache
def product(dtype: str, columns: int, transposed: bool) -> tirx.PrimFunc:
    """Kernel (a [64, 64], b [columns, 64] or, transposed, [64, columns]) → 1 + a · b [64, columns] fp32."""
    multiply, finish = multiply_tiles(dtype, columns, transposed), finish_tiles(columns // 2)

    def place(row, column):  # type: ignore[no-untyped-def]
        """Of a value in tiles [64, 64] side by side, or in one tile."""
        return column // DEPTH * 64 * DEPTH + swizzled(row, column % DEPTH // 8) + column % 8

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        a: T.Buffer((64, DEPTH), dtype),
        b: T.Buffer((DEPTH, columns) if transposed else (columns, DEPTH), dtype),
        y: T.Buffer((64, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer(((64 + columns) * DEPTH,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((columns // 2,), scope="local")
        for i in T.serial(64 * DEPTH // THREADS):
            e: T.let = i * THREADS + tx
            tiles[place(e // DEPTH, e % DEPTH)] = a[e // DEPTH, e % DEPTH]
        for i in T.serial(columns * DEPTH // THREADS):
            e: T.let = i * THREADS + tx
            if transposed:
                tiles[64 * DEPTH + place(e // columns, e % columns)] = b[e // columns, e % columns]
            else:
                tiles[64 * DEPTH + place(e // DEPTH, e % DEPTH)] = b[e // DEPTH, e % DEPTH]
        for i in T.unroll(columns // 2):
            sums[i] = T.float32(1)
        publish_tiles()
        T.tvm_storage_sync("shared")
        multiply(T.address_of(sums[0]), T.address_of(tiles[0]), T.address_of(tiles[64 * DEPTH]))
        finish(T.address_of(sums[0]))
        for j in T.unroll(columns // 8):
            for i in T.unroll(2):
                for v in T.unroll(2):
                    y[tx // 32 * 16 + tx % 32 // 4 + 8 * i, 8 * j + 2 * (tx % 4) + v] = sums[4 * j + 2 * i + v]

    return kernel


@pytest.mark.parametrize(
    ("dtype", "columns", "transposed"),
    [("float16", 128, False), ("bfloat16", 64, False), ("float16", 64, True), ("bfloat16", 128, True)],
)
def test_multiply_tiles_by_mma(dtype: str, columns: int, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (floats(rng, rows, DEPTH).astype(dtype) for rows in (64, columns))
    y = np.full((64, columns), np.nan, np.float32)
    launch_cuda(product(dtype, columns, transposed), a, np.ascontiguousarray(b.T) if transposed else b, y)
    np.testing.assert_allclose(y, 1 + a.astype(float) @ b.astype(float).T, atol=2e-5)
