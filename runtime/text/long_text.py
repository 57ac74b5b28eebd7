"""A text of any length: read in blocks and tokenized in pieces, in constant memory."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.text.tokenizer import Tokenizer

BLOCK_BYTES = 2**16
# Characters of a piece, and those that tokens at either end of it may depend on.
PIECE, CONTEXT = 2**14, 2**7
# Tokenizers split here, whatever comes before and after.
_BLANK = re.compile(r"\w \w")


class Piece(NamedTuple):
    """Tokens, and the bytes of UTF-8 that each stands for. Of a character split over several, the first has all."""

    ids: list[int]
    sizes: list[int]


def read_blocks(file: io.BufferedIOBase, name: str) -> Iterator[str]:
    """The text in a file of UTF-8. Raises `GeckoError`, once there, where it is not text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    begin = 0  # Of what is decoded next.
    while True:
        data = file.read1(BLOCK_BYTES)
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise GeckoError(f"{name}: byte {begin - waiting + error.start:,} is not UTF-8; expected a text") from None
        if "\0" in text:
            raise GeckoError(f"{name}: there are zero bytes in it; expected a text")
        if text:
            yield text
        if not data:
            return
        begin += len(data)


def encode_blocks(tokenizer: Tokenizer, blocks: Iterable[str], piece: int = PIECE) -> Iterator[Piece]:
    """The tokens of a text that comes in blocks of any length.

    They are those of the whole text where every `piece` characters have a blank between two words. Where they have
    none, as in Chinese, a few tokens of a cut may be others, which stand for the same text.
    """
    begins = True  # The text is the stream's beginning.
    text, done = "", 0  # text[:done] is out already, and the context of what follows.
    for block in blocks:
        text += block
        while len(text) >= done + piece + CONTEXT:
            window = text[: done + piece + CONTEXT]
            ids, spans = _encode_after(tokenizer, window, done, begins)
            count = _certain(window, spans, len(window) - CONTEXT)
            cut = spans[count - 1][1] if count else len(window)
            yield Piece(ids[:count], _sizes(text, done, [end for _, end in spans[:count]]))
            start = max(cut - CONTEXT, 0)
            begins = begins and start == 0
            text, done = text[start:], cut - start
    if done < len(text):
        ids, spans = _encode_after(tokenizer, text, done, begins)
        yield Piece(ids, _sizes(text, done, [end for _, end in spans]))


def _encode_after(tokenizer: Tokenizer, text: str, done: int, begins: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and places of the tokens of `text[done:]`, as they are after `text[:done]`, which may begin a stream."""
    ids, spans = tokenizer.encode_with_places(text, begins)
    first = next((i for i, (_, end) in enumerate(spans) if end > done), len(ids)) if done else 0
    if first < len(ids) and spans[first][0] < done:
        # A token that would stand for text that is out already.
        ids, spans = tokenizer.encode_with_places(text[done:], begins=False)
        return ids, [(start + done, end + done) for start, end in spans]
    return ids[first:], spans[first:]


def _certain(text: str, spans: list[tuple[int, int]], limit: int) -> int:
    """How many of the tokens would be the same whatever follows; at best up to a blank between two words."""
    fallback = None
    for count in range(len(spans) - 1, 0, -1):
        end = spans[count - 1][1]
        # Not within a character either.
        if end > limit or spans[count][0] < end:
            continue
        if _BLANK.match(text, end - 1):
            return count
        fallback = fallback or count
    return fallback or len(spans)


def _sizes(text: str, done: int, ends: list[int]) -> list[int]:
    """Bytes of UTF-8 from each token's end to the next one's."""
    if not ends:
        return []
    codes = np.frombuffer(text[done : ends[-1]].encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    total = np.concatenate([[0], np.cumsum(widths)])
    sizes: list[int] = np.diff(total[np.array(ends) - done], prepend=0).tolist()
    return sizes
