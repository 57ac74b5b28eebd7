"""The standard streams, whatever a terminal, a pipe or a service has made of them."""

from __future__ import annotations

import codecs
import io
import os
import sys

from gecko_mlc.formats.errors import GeckoError

# What is printed, where an encoding lacks it.
LIKENESSES = {"±": "+-", "×": "x", "…": "...", "–": "-", "→": "->", "’": "'"}


def prepare_streams() -> None:
    """Make a closed stream an empty one, before a file takes its place, and replace what an encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode))
    codecs.register_error("likeness", _likeness)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="likeness")


def utf8(data: bytes, name: str) -> str:
    """The text of what `name` says. Raises `GeckoError` where it is not UTF-8, whatever the locale is."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise GeckoError(f"{name}: byte {error.start} is not UTF-8; expected a text") from None


def utf8_argument(text: str, name: str) -> str:
    """A text that was typed. Raises `GeckoError` where its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return utf8(text.encode(errors="surrogateescape"), name)
    return text


def _likeness(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(LIKENESSES.get(character, "?") for character in missing), error.end
