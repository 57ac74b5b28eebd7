"""The scores of sliding chunk attention (specification 2.6) in prefill: a tile of rows times the keys that they see."""

import functools
from typing import Any

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import (
    SIMT,
    SIMT_TILE,
    SIMT_TILE_K,
    BlockTile,
    Fragment,
    accumulator_fragment,
)
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K, swizzle
from gecko_mlc.tir_kernels.cuda.gemm.pipeline import mma_pipeline
from gecko_mlc.tir_kernels.cuda.gemm.simt import simt_mainloop
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import copy_16_if
from gecko_mlc.tir_kernels.expressions import MASKED, Expr, f32
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.shapes import Window

# Keys of a tile of scores on the tensor cores, and keys that a block goes through: a split of a chunk.
KEYS, SPLIT = 128, 512


def splits(chunk_size: int) -> int:
    """Splits of the keys of two chunks."""
    return int(2 * divide(chunk_size, SPLIT))


def padded(chunk_size: int) -> int:
    """Weights of a chunk in a row: its positions, padded to a multiple of a tile's."""
    return int(divide(chunk_size, KEYS) * KEYS)


def scores_tile(window: Window, dtype: str, hardware: CUDA) -> BlockTile:
    """The tile of queries of `dtype`, which stay in shared memory, times keys.

    Two blocks share a multiprocessor if they fit: one exponentiates while the other multiplies.
    """
    if dtype == "float32" or window.key_dtype != dtype or window.head_dim % 8:
        return SIMT
    stage = KEYS * TILE_K * 2
    for rows in (128, 64):
        queries = divide(window.head_dim, TILE_K) * rows * TILE_K * 2
        for stages, resident in ((3, 2), (4, 1), (2, 1)):
            fits = resident * (queries + stages * stage) <= hardware.shared_memory
            if fits and (resident == 2 or rows == 64):
                return BlockTile(rows, KEYS, stages, resident=resident)
    return SIMT


def scores_fragment(tile: BlockTile) -> Fragment:
    """The accumulators of a thread, with keys for columns: on the tensor cores, eight neighbours at a time."""
    fragment = accumulator_fragment(tile)
    return fragment if tile.simt else fragment._replace(vector=8, column=lambda tx, c: c // 8 * 32 + tx % 4 * 8 + c % 8)


def _key_of_column(column: Expr) -> Expr:
    """The key of a tile that an MMA has as a column: in this order, eight neighbouring keys are a thread's."""
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


@functools.cache
def masked_scores(window: Window, dtype: str, tile: BlockTile) -> Any:
    """An inline (queries, keys, slots, position, n, row_tile, split, head, tx, begin, epilogue, end).

    If the tile's rows see keys of the split: begin(), epilogue(sums, key) for tiles of scores with the keys from `key`
    on, those that a row does not see `MASKED`, and end().
    """
    size, chunk_size = window.head_dim, window.chunk_size
    chunk_splits, thread = splits(chunk_size) // 2, scores_fragment(tile)
    scores = _simt_scores(size) if tile.simt else _mma_scores(size, dtype, tile)

    @T.inline
    def compute(queries, keys, slot_ids, position, n, row_tile, split, head, tx, begin, epilogue, end):
        slot: T.let = slot_ids[0]
        chunk: T.let = position[slot, 0]
        offset: T.let = position[slot, 1]
        # Of the split's chunk, 1 is the own: which it is, its buffer, and its keys that exist and that the tile sees.
        which = T.alloc_buffer((1,), "int32", scope="local")
        parity = T.alloc_buffer((1,), "int32", scope="local")
        exist = T.alloc_buffer((1,), "int32", scope="local")
        visible = T.alloc_buffer((1,), "int32", scope="local")
        if split < chunk_splits:
            which[0] = 0
            parity[0] = (chunk + 1) % 2
            exist[0] = T.Select(chunk >= 1, chunk_size, 0)
            visible[0] = exist[0]
        else:
            which[0] = 1
            parity[0] = chunk % 2
            exist[0] = offset + n
            visible[0] = T.min(exist[0], offset + (row_tile + 1) * tile.rows)
        first: T.let = split % chunk_splits * SPLIT

        @T.inline
        def mask(sums, key):
            # Keys beyond these are masked, a row later one more of the own chunk.
            limit: T.let = T.if_then_else(which[0] == 1, offset + row_tile * tile.rows + 1, chunk_size) - key
            if limit < tile.columns:
                for r in T.unroll(thread.rows):
                    seen: T.let = limit + which[0] * thread.row(tx, r)
                    for c in T.unroll(thread.columns):
                        if thread.column(tx, c) >= seen:
                            sums[thread.at(r, c)] = f32(MASKED)
            epilogue(sums, key)

        if first < visible[0]:
            begin()
            scores(
                lambda row, a: queries[row, 1 - which[0], head * size + a],
                lambda j, a: keys[slot, parity[0], j, head * size + a],
                n,
                row_tile * tile.rows,
                first,
                T.min(visible[0], first + SPLIT),
                exist[0],
                tx,
                mask,
            )
            end()

    return compute


def _mma_scores(size: int, dtype: str, tile: BlockTile) -> Any:
    """An inline (query, key, n, first_row, first, end, exist, tx, epilogue).

    Scores of rows from `first_row` on with keys from `first` to `end`, of which `exist`, in tiles; epilogue(sums, key)
    is expanded for those from `key` on. query(row, a) and key(row, a) are elements.
    """
    depths = divide(size, TILE_K)
    left, right = tile.rows * TILE_K, KEYS * TILE_K
    lines = tile.threads // 8
    prologue, mainloop = mma_pipeline(dtype, tile, False)

    @T.inline
    def scores(query, key, n, first_row, first, end, exist, tx, epilogue):
        tiles = T.alloc_buffer((depths * left + tile.stages * right,), dtype, scope="shared.dyn")
        sums = T.alloc_buffer((KEYS // 2,), scope="local")
        steps: T.let = divide(end - first, KEYS) * depths

        @T.inline
        def load(stage, step):
            a: T.let = step % depths * TILE_K + tx % 8 * 8
            # What does not exist is read as zeros, from an address that does.
            for i in T.unroll(KEYS // lines):
                column: T.let = tx // 8 + i * lines
                j: T.let = first + step // depths * KEYS + _key_of_column(column)
                copy_16_if(
                    T.address_of(tiles[depths * left + stage * right + swizzle(column, tx % 8)]),
                    T.address_of(key(T.min(j, exist - 1), T.min(a, size - 8))),
                    T.Cast("int32", j < exist and a < size),
                )

        for depth in T.unroll(depths):
            for i in T.unroll(tile.rows // lines):
                a: T.let = depth * TILE_K + tx % 8 * 8
                line: T.let = tx // 8 + i * lines
                copy_16_if(
                    T.address_of(tiles[depth * left + swizzle(line, tx % 8)]),
                    T.address_of(query(T.min(first_row + line, n - 1), T.min(a, size - 8))),
                    T.Cast("int32", first_row + line < n and a < size),
                )
        prologue(load, steps)
        for t in T.serial(divide(end - first, KEYS)):
            for i in T.unroll(KEYS // 2):
                sums[i] = T.float32(0)
            mainloop(
                sums,
                lambda step: T.address_of(tiles[step % depths * left + tx // 128 * 64 * TILE_K]),
                lambda step: T.address_of(tiles[depths * left + step % tile.stages * right]),
                load,
                t * depths,
                (t + 1) * depths,
                steps,
            )
            epilogue(sums, first + t * KEYS)

    return scores


def _simt_scores(size: int) -> Any:
    """The inline of `_mma_scores`, in FMAs."""
    mainloop = simt_mainloop()

    @T.inline
    def scores(query, key, n, first_row, first, end, exist, tx, epilogue):
        left = T.alloc_buffer((SIMT_TILE_K, SIMT_TILE + 1), scope="shared")
        right = T.alloc_buffer((1, SIMT_TILE_K, SIMT_TILE + 1), scope="shared")
        sums = T.alloc_buffer((16,), scope="local")
        for t in T.serial(divide(end - first, SIMT_TILE)):
            j: T.let = first + t * SIMT_TILE
            for i in T.unroll(16):
                sums[i] = T.float32(0)
            mainloop(
                left,
                right,
                sums,
                lambda line, a: T.Cast("float32", query(T.min(first_row + line, n - 1), a)),
                lambda _, column, a: T.Cast("float32", key(T.min(j + column, exist - 1), a)),
                size,
                tx,
            )
            epilogue(sums, j)

    return scores
