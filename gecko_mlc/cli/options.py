"""What commands share: options, progress, interrupts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.targets import names

AUTO = "auto"
# Messages go to standard error; standard output is for results alone.
console = Console(stderr=True, highlight=False)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or gecko-demo, the model that comes along.")
]
ModelLibOption = Annotated[
    Path | None,
    typer.Option("--model-lib", help="A compiled library; by default one is compiled for this machine."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="|".join((AUTO, *names())),
        help="Without --model-lib: what to run on; auto is this machine's GPU if it has one.",
    ),
]
StateDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--state-dtype",
        help="What a library that is compiled keeps keys and values as: float32, float16, bfloat16 or int8 (values"
        " alone); by default what the quantization does.",
    ),
]
QuantizationOption = Annotated[str, typer.Option("--quantization", help=f"One of {', '.join(QUANTIZATIONS)}.")]


def show_arguments(**arguments: Any) -> None:
    """Print a command's resolved arguments."""
    console.print("  ".join(f"{name}={value}" for name, value in arguments.items() if value is not None), style="dim")


def say(text: str) -> None:
    """Tell the user what takes its time."""
    console.print(text, style="dim")


_pressed = False


def remember_interrupts() -> None:
    """Ctrl-C raises `KeyboardInterrupt`, as always, and is remembered: what it raises is lost where it comes in the
    middle of a destructor, or of a callback of an import."""

    def handler(signum: int, frame: FrameType | None) -> None:
        global _pressed
        _pressed = True
        raise KeyboardInterrupt

    # Jobs in the background ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar over bytes done and bytes in all, if that is known. A Ctrl-C that was lost counts at its end."""
    with Progress(
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=None)

        def update(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield update
    if _pressed:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the block to end at its next good place; a second one ends it at once."""
    pressed = False

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def checked(build: Callable[[], Any]) -> Any:
    """Run `build`, turning a pydantic complaint about options into a message."""
    try:
        return build()
    except ValidationError as error:
        fault = error.errors()[0]
        option = str(fault["loc"][-1]).replace("_", "-")
        raise GeckoError(f"--{option}: {fault['msg']}, got {fault['input']!r}") from None


def write_text(text: str) -> None:
    """A piece of text to standard output, at once; what its encoding lacks is replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def parse_overrides(overrides: str, known: dict[str, int]) -> dict[str, int]:
    """MLC's `key=value;key=value` over the `known` keys and their defaults."""
    values = dict(known)
    for item in filter(None, overrides.split(";")):
        key, _, text = item.partition("=")
        if key not in known or not text.isdigit() or int(text) < 1:
            raise GeckoError(f"--overrides {item!r}: expected key=number with a key of {', '.join(known)}")
        values[key] = int(text)
    return values
