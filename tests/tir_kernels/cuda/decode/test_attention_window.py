"""How a window is split into parts."""

from __future__ import annotations

import pytest

from gecko_mlc.tir_kernels.cuda.decode import attention_window


@pytest.mark.parametrize(
    ("chunk_size", "heads", "expected"), [(2048, 4, 99), (1024, 4, 64), (512, 4, 32), (16, 4, 1), (13, 3, 1)]
)
def test_parts(chunk_size: int, heads: int, expected: int) -> None:
    """Enough blocks for a GPU, and not less than 32 positions for each when the window is full."""
    assert attention_window.parts(chunk_size, heads) == expected
