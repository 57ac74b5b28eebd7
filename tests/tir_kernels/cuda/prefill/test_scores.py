"""Tiles and splits of the scores of prefill."""

from __future__ import annotations

import pytest

from gecko_mlc.tir_kernels.cuda.gemm.block_tile import SIMT
from gecko_mlc.tir_kernels.cuda.gemm.mma import TILE_K
from gecko_mlc.tir_kernels.cuda.prefill.scores import KEYS, SPLIT, padded, scores_fragment, scores_tile, splits
from gecko_mlc.tir_kernels.hardware import CUDA, divide
from gecko_mlc.tir_kernels.shapes import Window


def window(size: int, key_dtype: str) -> Window:
    return Window(size, size, 1, 1, 2048, 1, 1e-5, key_dtype, key_dtype)


@pytest.mark.parametrize("architecture", [80, 86, 90])
@pytest.mark.parametrize("size", [8, 64, 136, 256])
def test_queries_and_stages_of_resident_blocks_fit_shared_memory(architecture: int, size: int) -> None:
    hardware = CUDA((architecture,))
    tile = scores_tile(window(size, "float16"), "float16", hardware)
    queries, keys = divide(size, TILE_K) * tile.rows * TILE_K, tile.stages * KEYS * TILE_K
    assert not tile.simt
    assert tile.resident * (queries + keys) * 2 <= hardware.shared_memory


@pytest.mark.parametrize(
    ("size", "dtype", "key_dtype"), [(64, "float32", "float32"), (64, "float32", "float16"), (36, "float16", "float16")]
)
def test_tensor_cores_take_rows_of_16_bytes_of_one_16_bit_dtype(size: int, dtype: str, key_dtype: str) -> None:
    assert scores_tile(window(size, key_dtype), dtype, CUDA((90,))) == SIMT


def test_a_thread_holds_eight_neighbouring_keys() -> None:
    tile = scores_tile(window(64, "float16"), "float16", CUDA((90,)))
    fragment = scores_fragment(tile)
    keys = [fragment.column(tx, c) for tx in range(4) for c in range(fragment.columns)]
    assert sorted(keys) == list(range(KEYS))
    assert [fragment.column(1, c) - fragment.column(1, 0) for c in range(fragment.vector)] == list(range(8))


@pytest.mark.parametrize("chunk_size", [1, 128, 512, 600, 2048])
def test_splits_and_padding_cover_a_chunk(chunk_size: int) -> None:
    assert splits(chunk_size) // 2 * SPLIT >= chunk_size > (splits(chunk_size) // 2 - 1) * SPLIT
    assert padded(chunk_size) % KEYS == 0 and 0 <= padded(chunk_size) - chunk_size < KEYS
