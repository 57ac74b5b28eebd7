"""Tokenizer: text to ids, and ids to text as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import check_file
from gecko_mlc.runtime.text.templates import Text

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """A `tokenizer.json`. Raises `GeckoError` when it is missing or damaged, or has ids a model lacks."""

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        path = folder / TOKENIZER
        if not path.exists():
            raise GeckoError(f"{path}: no such file; text needs the model's tokenizer there")
        check_file(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare exceptions.
            raise GeckoError(f"{path}: not a tokenizer: {error}") from None
        self.size = self._tokenizer.get_vocab_size()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: dict[int, str] = {i: token.content for i, token in added.items() if token.special}
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

    def special_text(self, token: int) -> str | None:
        """What a special token is called, which `decode` leaves out; None of any other."""
        return self._special.get(token)

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
