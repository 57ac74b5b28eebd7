"""What README.md and the pages of docs/ show is there: their commands parse, their Python runs, their links lead on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from gecko_mlc.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """The lines after a prompt, without their comments."""
    lines = [line for page in PAGES for line in re.findall(r"^\$ (.+)$", page.read_text(), re.MULTILINE)]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


COMMANDS = [line for line in documented_commands() if re.match(r"(\.venv/bin/)?gecko-mlc ", line)]


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_exist(line: str) -> None:
    """Their names, options and arguments parse."""
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments, resilient_parsing=False) as context:
        assert context.params


def test_documented_goals_of_make_exist() -> None:
    goals = {goal for line in documented_commands() if line.startswith("make ") for goal in line.split()[1:]}
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"test"} <= goals <= made


def test_documented_python_runs(home: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "GECKO_MLC_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
