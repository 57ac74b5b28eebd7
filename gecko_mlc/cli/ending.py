"""How a command ended: its exit code, and what there is to say about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress

from gecko_mlc.cli.interrupts import pressed
from gecko_mlc.formats.errors import GeckoError, OptionError
from gecko_mlc.formats.memory import is_shortage
from gecko_mlc.home import package

INTERRUPTED, READER_GONE = 130, 141


def ended(error: BaseException) -> int:
    """The exit code of a command that ended by `error`, after the user was told. Raises what is not the user's."""
    code = _exit_code(error)
    try:
        sys.stdout.flush()
    except OSError:
        # Nor can it be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _exit_code(error: BaseException) -> int:
    # What typer makes exits of is behind them, as is what Ctrl-C made another error of.
    causes = list(_causes(error))
    interrupts = [cause for cause in causes if isinstance(cause, KeyboardInterrupt)]
    if interrupts or pressed():
        details = [str(interrupt) for interrupt in interrupts if str(interrupt)]
        # A terminal has written ^C.
        _tell("\n" * sys.stderr.isatty() + "; ".join(["interrupted", *details[:1]]))
        return INTERRUPTED
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        # The reader has gone (`| head`): nothing is wrong, and nothing more can be said.
        return READER_GONE
    if isinstance(error, SystemExit):
        return _failed(error.code) if isinstance(error.code, str) else int(error.code or 0)
    if isinstance(error, OptionError):
        return _failed(f"--{error.option.replace('_', '-')}: {error.reason}")
    if isinstance(error, GeckoError):
        return _failed(_told(error))
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in ("gecko_mlc", "tvm"):
        # What `package` writes has the running side alone.
        return _failed(f"there is no {error.name} here; this needs all of gecko-mlc, not a package")
    if is_shortage(error):
        # Of what a command imports, or reads.
        return _failed(f"not enough memory: {str(error) or 'none is left'}")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}")
    raise error


def _told(error: GeckoError) -> str:
    """What an error says; in a package, that what it lacks is made elsewhere."""
    if error.making and package() is not None:
        error = GeckoError(error.message, f"where this package was made, {error.making}")
    return str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _failed(message: str) -> int:
    _tell(f"error: {message}")
    return 1


def _tell(message: str) -> None:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
