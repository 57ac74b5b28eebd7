"""Tokenizer: text to ids, and ids to text as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from gecko_mlc.runtime.conversation import Text
from gecko_mlc.runtime.errors import GeckoError

TOKENIZER = "tokenizer.json"
# A character has at most 4 bytes; waiting for more would hide text that never becomes whole.
_MAX_PENDING = 8


class Tokenizer:
    """A `tokenizer.json`. Raises `GeckoError` when it is missing or damaged, or has ids a model lacks."""

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        path = folder / TOKENIZER
        if not path.is_file():
            raise GeckoError(f"{path}: no such file; text needs the model's tokenizer there")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare exceptions.
            raise GeckoError(f"{path}: not a tokenizer: {error}") from None
        self.size = self._tokenizer.get_vocab_size()
        if vocab_size is not None:
            largest = max(self.vocabulary().values(), default=-1)
            if largest >= vocab_size:
                raise GeckoError(f"{path}: its largest id is {largest}, but the model's vocabulary is {vocab_size}")

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`; special tokens in it are recognized if `special`, else they are plain text."""
        ids: list[int] = self._encode(text, special).ids
        return ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text`, as plain text, and where the characters of each begin and end."""
        encoding = self._encode(text, special=False)
        return encoding.ids, encoding.offsets

    def encode_parts(self, parts: list[Text]) -> list[int]:
        """Ids of the parts of a prompt, one after the other."""
        return [i for part in parts for i in self.encode(part.text, part.special)]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        tokens: dict[str, int] = self._tokenizer.get_vocab()
        return tokens

    def _encode(self, text: str, special: bool) -> Any:
        self._tokenizer.encode_special_tokens = not special
        return self._tokenizer.encode(clean(text), add_special_tokens=False)


def clean(text: str) -> str:
    """Lone surrogates, which no UTF-8 holds, replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class TextStream:
    """Turns ids into text piece by piece; characters split over tokens come out whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Ids whose text is out already but gives the next ones their context, and those still to come.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._pending) < _MAX_PENDING:
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """What is left, incomplete characters replaced."""
        text = self._new_text() if self._pending else ""
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]
