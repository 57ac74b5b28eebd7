"""What takes long is shown while it does, where it can be erased."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from gecko_mlc.cli import terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=80, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    return file


def test_steps_and_their_seconds(shown: io.StringIO) -> None:
    with terminal.step_progress() as step:
        assert shown.getvalue() == ""
        step("compiling 46 kernels")
        time.sleep(0.2)
        step("linking")
        time.sleep(0.2)
        step("")
        assert re.search(r"compiling 46 kernels 0:00:00", shown.getvalue())
        assert re.search(r"linking 0:00:00", shown.getvalue())
        erased = shown.getvalue()
        assert erased.endswith("\x1b[2K")
    assert shown.getvalue() == erased


def test_bytes_once_there_are_some(shown: io.StringIO) -> None:
    with terminal.byte_progress("loading") as progress:
        assert shown.getvalue() == ""
        progress(2 * 10**6, 4 * 10**6)
    assert "2.0/4.0 MB" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")


def test_tokens_of_a_prompt_that_takes_long(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal.prompt_progress() as progress:
        progress(100, 200)
        progress(200, 200)
    assert shown.getvalue() == ""
    monkeypatch.setattr(terminal, "WONDERING", 0.0)
    with terminal.prompt_progress() as progress:
        progress(1000, 20_000)
    assert "1,000/20,000 tokens" in shown.getvalue()
    assert "tokens/s" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("abilities", [{"force_terminal": False}, {"force_terminal": True, "force_interactive": False}])
def test_nothing_where_it_cannot_be_erased(abilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=file, **abilities))  # type: ignore[arg-type]
    monkeypatch.setattr(terminal, "WONDERING", 0.0)
    with terminal.step_progress() as step, terminal.byte_progress("loading") as loaded:
        step("linking")
        step("")
        loaded(1, 2)
    with terminal.prompt_progress() as progress:
        progress(1, 2)
    assert file.getvalue() == ""
