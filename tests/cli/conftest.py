"""Fixtures: the command line, in a process of its own and in this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import COMMAND, Done

from gecko_mlc.cli import main


@pytest.fixture(scope="module")
def gecko(home: Path) -> Callable[..., Done]:
    """Run a command in a process of its own."""

    def run(*arguments: str | Path, text: str = "", **environment: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=text,
            capture_output=True,
            text=True,
            env={**os.environ, "GECKO_MLC_HOME": str(home), **environment},
            timeout=300,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process, which has imported everything already, with `text` as standard input."""

    def run(*arguments: str | Path, text: str | bytes = "") -> Done:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setenv("GECKO_MLC_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["gecko-mlc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capfd.readouterr())

    return run
