"""Tokenizer: text to ids, at the beginning of a stream or within it, and ids to text."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import check_file
from gecko_mlc.runtime.text.templates import Text

TOKENIZER = "tokenizer.json"
# The largest real ones have some tens of megabytes.
MAX_TOKENIZER_BYTES = 256 * 2**20


class Tokenizer:
    """A `tokenizer.json`. Raises `GeckoError` when it is missing or damaged, or has ids a model lacks.

    Several threads may use it at once.
    """

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        self._path = path = folder / TOKENIZER
        if not path.exists():
            raise GeckoError(f"{path}: no such file; text needs the model's tokenizer there")
        check_file(path, MAX_TOKENIZER_BYTES)
        try:
            self._tokenizer = _unbounded(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # The library raises bare exceptions.
            raise GeckoError(f"{path}: not a tokenizer: {error}") from None
        self.size = self._tokenizer.get_vocab_size()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special: dict[int, str] = {i: token.content for i, token in added.items() if token.special}
        if vocab_size is not None:
            largest = max(self.vocabulary().values(), default=-1)
            if largest >= vocab_size:
                raise GeckoError(f"{path}: its largest id is {largest}, but the model's vocabulary is {vocab_size}")
        self._lock = threading.Lock()
        self._within = _without_prefix(self._tokenizer)
        falls_back = _falls_back(_state(self._tokenizer.decoder))
        names = {byte: f"<0x{byte:02X}>" for byte in range(256 if falls_back else 0)}
        found = {byte: self._tokenizer.token_to_id(name) for byte, name in names.items()}
        # The bytes of tokens that stand for one each. A run of them is text if it is UTF-8 as a whole.
        self.bytes: dict[int, int] = {i: byte for byte, i in found.items() if i is not None}
        self._beginning = self._post_processed()

    def encode(self, text: str, special: bool = False, begins: bool = True) -> list[int]:
        """Ids of `text`; special tokens in it are recognized if `special`, else they are plain text.

        Text that `begins` a stream is what many tokenizers put a blank before, which decoding leaves out again.
        """
        return self._encode(text, special, begins)[0]

    def encode_with_places(self, text: str, begins: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text`, as plain text, and where the characters of each begin and end."""
        return self._encode(text, False, begins)

    def encode_parts(self, parts: Sequence[Text], begins: bool = True) -> list[int]:
        """Ids of the parts of a prompt, one after the other; the first text of them may begin a stream."""
        ids: list[int] = []
        for part in parts:
            ids += self.encode(part.text, part.special, begins)
            begins = begins and all(i in self._added for i in ids)
        return ids

    def with_beginning(self, ids: list[int], beginning: Sequence[int] = ()) -> list[int]:
        """The first `ids` of a stream after `beginning`, or else what the tokenizer's post-processor puts before a
        text, unless they begin so themselves."""
        # The tokenizer's may say more than the one token that a config has room for.
        first = self._beginning if set(beginning) <= set(self._beginning) else list(beginning)
        there = next(n for n in range(len(first), -1, -1) if ids[:n] == first[len(first) - n :])
        return [*first[: len(first) - there], *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def has_text(self, token: int) -> bool:
        """Whether `decode` does not leave `token` out, as it does those that are special or unknown."""
        try:
            return token not in self._special and self._tokenizer.id_to_token(token) is not None
        except (OverflowError, TypeError):  # It is no id at all.
            return False

    def special_text(self, token: int) -> str | None:
        """What a special token is called, which `decode` leaves out; None of any other."""
        return self._special.get(token)

    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        tokens: dict[str, int] = self._tokenizer.get_vocab()
        return tokens

    def _encode(self, text: str, special: bool, begins: bool) -> tuple[list[int], list[tuple[int, int]]]:
        text = clean(text)
        ids, spans = self._run(self._within, text, special)
        if not begins or self._within is self._tokenizer:
            return ids, spans
        # The library puts a blank before all text between added tokens; only the first one begins the stream.
        first = next((place for place, i in enumerate(ids) if i not in self._added), len(ids))
        last = next((place for place in range(first, len(ids)) if ids[place] in self._added), len(ids))
        start = spans[first - 1][1] if first else 0
        end = spans[last][0] if last < len(ids) else len(text)
        if start < end:
            head, places = self._run(self._tokenizer, text[start:end], False)
            ids[first:last] = head
            spans[first:last] = [(a + start, b + start) for a, b in places]
        return ids, spans

    def _run(self, library: Any, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        with self._lock:
            library.encode_special_tokens = not special
            try:
                encoding = library.encode(text, add_special_tokens=False)
            except Exception as error:  # Of any kind, where it lacks a token for what it does not know.
                raise GeckoError(f"{self._path}: has no tokens for the text: {error}") from None
        return encoding.ids, encoding.offsets

    def _post_processed(self) -> list[int]:
        """What the post-processor puts before a text."""
        # Any text will do that there are tokens for.
        for text in ("a", *(self._tokenizer.id_to_token(i) or "" for i in range(16))):
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=True)
            except Exception:
                continue
            if 0 in encoding.special_tokens_mask:
                return list(encoding.ids[: encoding.special_tokens_mask.index(0)])
        return []


def clean(text: str) -> str:
    """Lone surrogates, which no UTF-8 holds, replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _unbounded(library: Any) -> Any:
    """It may have been saved while it cut or filled texts to a length."""
    library.no_truncation()
    library.no_padding()
    return library


def _without_prefix(library: Any) -> Any:
    """The tokenizer of a text within a stream, before which it puts no blank; `library` itself if it never does."""
    whole = {"normalizer": _state(library.normalizer), "pre_tokenizer": _state(library.pre_tokenizer)}
    within = {name: _unprefixed(part) for name, part in whole.items()}
    if within == whole:
        return library
    return _unbounded(tokenizers.Tokenizer.from_str(json.dumps({**json.loads(library.to_str()), **within})))


def _state(component: Any) -> Any:
    """A part of a tokenizer as `tokenizer.json` has it."""
    return None if component is None else json.loads(component.__getstate__())


def _unprefixed(part: Any) -> Any:
    """A normalizer or pre-tokenizer without what puts a blank before texts, as `tokenizer.json` has it."""
    match part:
        case {"type": "Prepend"}:
            return {"type": "Sequence", "normalizers": []}
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence"}:
            return {
                key: [_unprefixed(p) for p in value] if isinstance(value, list) else value
                for key, value in part.items()
            }
    return part


def _falls_back(decoder: Any) -> bool:
    """Whether a decoder reads tokens like <0x0A> as bytes."""
    match decoder:
        case {"type": "Sequence", "decoders": parts}:
            return any(map(_falls_back, parts))
        case {"type": "ByteFallback"}:
            return True
    return False
