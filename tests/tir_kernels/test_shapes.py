"""Shapes as values."""

from __future__ import annotations

from gecko_mlc.tir_kernels.shapes import EMA, GroupNorm, TimestepNorm, Window

WINDOW = Window(
    z_dim=12,
    value_dim=20,
    heads=2,
    rope_heads=1,
    chunk_size=7,
    slots=3,
    eps=1e-5,
    key_dtype="float16",
    value_dtype="int8",
)


def test_a_window_knows_the_shapes_of_the_state() -> None:
    assert (WINDOW.head_dim, WINDOW.value_head_dim) == (6, 10)
    assert (WINDOW.keys, WINDOW.values, WINDOW.value_scales) == ((3, 2, 7, 12), (3, 2, 7, 20), (3, 2, 7, 2))
    assert (WINDOW.memory, WINDOW.log_norm) == ((3, 2, 6, 10), (3, 2, 6))


def test_only_codes_have_scales() -> None:
    assert WINDOW.scaled
    assert not WINDOW._replace(value_dtype="float16").scaled


def test_kernels_can_be_cached_by_shapes() -> None:
    norm = TimestepNorm(12, 3, 2, 7, betas=(0.9, 0.99), eps=1e-5)
    shapes = {WINDOW, norm, GroupNorm(12, 3, 1e-5, True), EMA(12, 4, 2)}
    assert {WINDOW._replace(), norm._replace()} < shapes
