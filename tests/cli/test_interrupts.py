"""Ctrl-C, whenever it comes: said once, exit code 130, nothing else. And other wishes that a command ends."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Done, finish, start
from support.terminal import Terminal

Inside = Callable[..., Done]
# What a line to be edited begins with.
READY = "\x1b[?2004h"


def press(*arguments: object, **named: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("module", ["typer", "pydantic", "numpy", "gecko_mlc.runtime.engine"])
def test_in_an_import(home: Path, module: str) -> None:
    script = f"""
import signal, sys

class Press:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Press())
sys.argv = ["gecko-mlc", "generate", "gecko-demo", "-p", "x"]
from gecko_mlc.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("gecko_mlc.cli.generate", "read_prompt"),
        ("gecko_mlc.api", "model_folder"),
        ("gecko_mlc.api", "model_library"),
        ("gecko_mlc.api", "Model"),
    ],
)
def test_before_the_first_token(place: str, name: str, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module(place), name, press)
    done = inside("generate", "gecko-demo", "-p", "x")
    assert done.returncode == 130
    assert done.stderr.count("interrupted") == 1
    assert done.stderr.endswith("interrupted\n")


def test_one_that_is_lost_counts_after_loading() -> None:
    """As one that comes in the middle of a destructor."""
    script = """
import signal
from gecko_mlc.cli.interrupts import handle_signals
from gecko_mlc.cli.terminal import byte_progress

class Pressed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

handle_signals()
with byte_progress("loading"):
    Pressed()
    print("loaded", flush=True)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "loaded\n"
    assert done.returncode == -signal.SIGINT


def test_in_decode_what_was_said_is_kept(home: Path) -> None:
    process = start(home, "generate", "gecko-demo", "--prompt", "And it came to pass", "--max-tokens", "1000000")
    assert process.stdout is not None
    begun = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert len(begun + out) >= 20
    assert err.endswith("; interrupted\ninterrupted\n")
    assert process.returncode == 130


def test_in_the_prompt_which_shows_how_far_it_is(home: Path) -> None:
    """A prompt that takes long."""
    terminal = Terminal(home, "generate", "gecko-demo", "-p", "word " * 20_000)
    terminal.wait_for("tokens/s")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "0:0" in terminal.shown
    assert "reading" in terminal.shown
    assert terminal.shown.count("\ninterrupted") == 1


def test_at_the_prompt_of_a_chat(home: Path) -> None:
    """It empties a line, and leaves from an empty one."""
    terminal = Terminal(home, "chat", "gecko-demo")
    terminal.wait_for(READY)
    terminal.type("half a word")
    terminal.wait_for("word")
    terminal.type("\x03")
    terminal.wait_for(READY)
    terminal.type("/nonsense\r")
    terminal.wait_for("unknown command /nonsense")
    terminal.wait_for(READY)
    terminal.type("\x03")
    assert terminal.end() == 130
    assert terminal.shown.count("interrupted") == 1


def test_in_an_answer_of_a_chat_it_goes_on(home: Path) -> None:
    terminal = Terminal(home, "chat", "gecko-demo", "--seed", "1")
    terminal.wait_for(READY)
    terminal.type("Hello\r")
    terminal.wait_for("my")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for(READY)
    terminal.type("/stats\r")
    terminal.wait_for("interrupted; the state has seen")
    terminal.wait_for(READY)
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_wishes_are_heard_and_need_no_words(home: Path, number: signal.Signals) -> None:
    process = start(home, "generate", "gecko-demo", "--prompt", "And it came to pass", "--max-tokens", "1000000")
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(number)
    _, err = finish(process)
    assert process.returncode == 128 + number
    assert len(err.splitlines()) == 1
