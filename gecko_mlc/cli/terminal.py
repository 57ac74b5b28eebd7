"""What commands say, and the progress they show: messages on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gecko_mlc.cli.interrupts import raise_lost_interrupt

# Seconds after which one would like to know how long something takes.
WONDERING = 0.5
# Texts may hold what rich would take for markup.
console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
results = Console(highlight=False, markup=False, emoji=False)


def show_arguments(**arguments: Any) -> None:
    """Print a command's resolved arguments."""
    console.print("  ".join(f"{name}={value}" for name, value in arguments.items() if value is not None), style="dim")


def say(text: str) -> None:
    """Tell the user what takes its time."""
    console.print(text, style="dim")


@contextmanager
def step_progress() -> Iterator[Callable[[str], None]]:
    """A spinner with the step of a long work that is being done, and the seconds since the first; "" ends it."""
    spinner = SpinnerColumn("dots" if console.encoding.startswith("utf") else "line")
    with _progress(spinner, TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        task = progress.add_task("", start=False)

        def update(step: str) -> None:
            if not step:
                _erase(progress)
                return
            progress.update(task, description=step)
            progress.start_task(task)
            progress.start()

        yield update


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar over bytes done and bytes in all, if that is known. A Ctrl-C that was lost counts at its end."""
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(title, total=None)

        def update(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)
            progress.start()

        yield update
    raise_lost_interrupt()


@contextmanager
def prompt_progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over a prompt's tokens, read and in all, where that takes long enough to wonder."""
    tokens, speed = "{task.completed:,.0f}/{task.total:,.0f} tokens", "{task.fields[speed]}"
    columns = (TextColumn("reading"), BarColumn(), TextColumn(tokens), TextColumn(speed), TimeRemainingColumn())
    with _progress(*columns) as progress:
        begun, task = time.monotonic(), progress.add_task("reading", speed="")

        def update(done: int, total: int) -> None:
            seconds = time.monotonic() - begun
            progress.update(task, completed=done, total=total, speed=f"{done / max(seconds, 1e-3):,.0f} tokens/s")
            if done < total and seconds > WONDERING:
                progress.start()

        yield update


@contextmanager
def _progress(*columns: ProgressColumn) -> Iterator[Progress]:
    """What is shown once it is started, and erased at the end; nothing where it cannot be erased."""
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
    try:
        yield progress
    finally:
        _erase(progress)


def _erase(progress: Progress) -> None:
    if progress.live.is_started:
        progress.stop()


def write_text(text: str) -> None:
    """A piece of text to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
