"""Standard streams that are closed, gone, no text, or of another encoding; and terminals that can little."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import COMMAND, Done
from support.terminal import Terminal

Inside = Callable[..., Done]


def shell(home: Path, command: str, **environment: str) -> Done:
    """Run a line of a shell in which `$G` is the command line."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GECKO_MLC_HOME": str(home), "G": " ".join(COMMAND), **environment},
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("$G generate gecko-demo -p x --max-tokens 3 >&-", 0, "3 out"),
        ("$G generate gecko-demo <&-", 1, "error: the prompt is empty"),
        ("$G chat gecko-demo <&- >&-", 0, ""),
        ("$G --version >&-", 0, ""),
        ("$G --help >&- 2>&-", 0, ""),
        ("$G info nothing 2>&-", 1, ""),
        ("$G --version <&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_streams_are_empty_ones(home: Path, command: str, code: int, said: str) -> None:
    done = shell(home, command)
    assert done.returncode == code
    assert done.stdout == ""
    assert said in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "$G generate gecko-demo -p x --max-tokens 1000000 | head -c 10",
        "echo hello | $G chat gecko-demo | true",
        "$G --help | true",
        "$G --version | true",
        "$G generate gecko-demo -p x --max-tokens 1000000 2>&1 >/dev/null | true",
    ],
)
def test_a_reader_that_goes_away_ends_a_command_without_a_word(home: Path, command: str) -> None:
    done = shell(home, command)
    assert done.returncode == 141
    assert done.stderr.count("\n") <= 1


def test_a_full_disk_is_said(home: Path) -> None:
    done = shell(home, "$G --version >/dev/full")
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii", "latin-1"])
def test_input_is_utf8_whatever_the_locale_is(home: Path, encoding: str) -> None:
    wrong = shell(home, "printf 'caf\\351 is good' | $G generate gecko-demo", PYTHONIOENCODING=encoding)
    assert wrong.returncode == 1
    assert wrong.stderr == "error: standard input: byte 3 is not UTF-8; expected a text\n"


def test_what_an_encoding_lacks_is_replaced(home: Path) -> None:
    options = "--max-tokens 3 --seed 1 --stop …"
    ascii = shell(home, f"printf 'Ch\\303\\251' | $G generate gecko-demo {options}", PYTHONIOENCODING="ascii:strict")
    assert ascii.returncode == 0
    assert "stop=['...']" in ascii.stderr
    assert "?" in shell(home, "$G generate gecko-é -p x", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="1").stderr
    assert shell(home, "$G --help", PYTHONIOENCODING="ascii:strict", LC_ALL="C").stdout.isascii()


def test_a_terminal_that_can_little(home: Path) -> None:
    terminal = Terminal(home, "chat", "gecko-demo", columns=20, TERM="dumb", LC_ALL="C", PYTHONIOENCODING="ascii")
    terminal.wait_for("> ")
    terminal.type("/set max_tokens=3\r")
    terminal.wait_for("max_tokens=3\r\n")
    terminal.type("Hello\r")
    terminal.type("/stats\r")
    terminal.wait_for("3 out")
    terminal.type("/exit\r")
    assert terminal.end() == 0
    assert "loading" not in terminal.shown
