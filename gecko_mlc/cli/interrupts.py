"""Signals in commands: Ctrl-C, and the wish that a process ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_pressed = False


def handle_signals() -> None:
    """Ctrl-C raises `KeyboardInterrupt`, as always, and is remembered: what it raises is lost where it comes in the
    middle of a destructor, or of a callback of an import. Other wishes to end are exits, so that nothing is left."""
    global _pressed
    _pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        global _pressed
        _pressed = True
        raise KeyboardInterrupt

    def end(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise SystemExit(128 + signum)

    # Jobs in the background ignore Ctrl-C, those of nohup a terminal that closes.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, press)
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, end)


def pressed() -> bool:
    """Whether Ctrl-C was pressed where it ends the command."""
    return _pressed


def raise_lost_interrupt() -> None:
    """Ctrl-C once more, if it was pressed: nothing that takes its time begins after it."""
    if _pressed:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the block to end at its next good place; a second one ends it at once."""
    asked = False

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
