"""Ctrl-C in commands."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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


def raise_lost_interrupt() -> None:
    """Ctrl-C once more, if it was pressed: nothing that takes its time begins after it."""
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
