"""Inputs to spoil, and commands run in this process."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bad_inputs import Inputs, make_inputs
from support.commands import Done

from gecko_mlc.cli import main


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, compiled: Callable[..., Path]) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), compiled)


@pytest.fixture
def inputs(whole: Inputs, tmp_path: Path) -> Inputs:
    """A copy to spoil."""
    return Inputs(Path(shutil.copytree(whole.folder, tmp_path / "inputs", symlinks=True)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process, which has imported everything already, with `text` as standard input."""

    def run(arguments: list[str | Path], text: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["gecko-mlc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capfd.readouterr())

    return run
