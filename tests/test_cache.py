"""Which library a model folder is run with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gecko_mlc import cache
from gecko_mlc.cache import library_name, model_library
from gecko_mlc.runtime.devices import nvidia


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
    monkeypatch.setattr(nvidia, "usable", lambda: capability)
    for kind in there:
        (tmp_path / library_name(kind)).touch()
    assert model_library(tmp_path, device) == tmp_path / library_name(taken)


def test_a_state_dtype_is_compiled_unless_a_library_of_it_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "read_metadata", lambda library: SimpleNamespace(state_dtype="int8"))
    monkeypatch.setattr(cache, "read_chat_config", lambda folder: SimpleNamespace(config={}, quantization="q0f16"))
    monkeypatch.setattr(cache.subprocess, "run", run)
    (tmp_path / "cpu.so").touch()
    assert model_library(tmp_path, "cpu", state_dtype="int8") == tmp_path / "cpu.so"
    assert commands == []
    paths = {dtype: model_library(tmp_path, "cpu", state_dtype=dtype) for dtype in ("float16", "float32")}
    assert [command[command.index("--state-dtype") + 1] for command in commands] == list(paths)
    assert len(set(paths.values())) == 2
