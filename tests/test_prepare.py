"""Which library a model folder is run with."""

from __future__ import annotations

from pathlib import Path

import pytest
from gecko_mlc.runtime import gpu

from gecko_mlc.prepare import library_name, model_library


@pytest.mark.parametrize(
    ("capability", "there", "device", "taken"),
    [
        (90, ("cpu", "cuda"), "auto", "cuda"),
        (None, ("cpu", "cuda"), "auto", "cpu"),
        (90, ("cpu",), "auto", "cpu"),
        (None, ("cuda",), "auto", "cuda"),
        (90, ("cpu", "cuda"), "cpu", "cpu"),
    ],
)
def test_a_library_that_comes_along(
    capability: int | None,
    there: tuple[str, ...],
    device: str,
    taken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "usable", lambda: capability)
    for kind in there:
        (tmp_path / library_name(kind)).touch()
    assert model_library(tmp_path, device) == tmp_path / library_name(taken)
