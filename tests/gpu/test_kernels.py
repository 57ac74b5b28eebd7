"""Every launch of the CUDA kernels' tests, made again on a GPU: what an emulator cannot execute shows here."""

from __future__ import annotations

from pathlib import Path

from support.gpu.launches import kernels


def test_every_launch_gives_what_the_oracle_does(prepared: Path) -> None:
    result = kernels(prepared)
    assert result["failures"] == []
    assert result["launches"] > 500
