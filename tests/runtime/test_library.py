"""A library that does not fit is refused before any kernel runs, with the next step in the message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import small_config

from gecko_mlc.formats import library
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.library import Library


@pytest.fixture
def path(compiled: Callable[..., Path]) -> Path:
    return compiled(small_config(num_layers=1))


def test_another_abi(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    with pytest.raises(GeckoError, match=f"ABI version {ABI_VERSION}, expected 99; compile it again"):
        Library(path)


def test_a_cpu_without_the_features(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_features", lambda: frozenset({"sse2"}))
    with pytest.raises(GeckoError, match=r"but this CPU has no .*; compile it on this machine, or with --mcpu"):
        Library(path)


def test_a_system_that_does_not_tell_its_features(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_features", lambda: None)
    assert Library(path).metadata.config["num_layers"] == 1


@pytest.mark.parametrize("kept", [10, 3000, -1])
def test_a_damaged_library(kept: int, path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "lib.so"
    damaged.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GeckoError, match=r"not all of one: it holds no metadata|damaged or incomplete"):
        Library(damaged)


def test_some_other_shared_library(tmp_path: Path) -> None:
    import tvm_ffi

    other = next(Path(tvm_ffi.__file__).parent.rglob("*.so"))
    shutil.copy(other, tmp_path / "lib.so")
    with pytest.raises(GeckoError, match="not a library of gecko-mlc"):
        Library(tmp_path / "lib.so")
