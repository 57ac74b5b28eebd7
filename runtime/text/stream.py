"""Text from ids as they come: characters split over tokens come out whole."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gecko_mlc.runtime.text.tokenizer import Tokenizer

# What stands for bytes that are no character, or not yet.
REPLACEMENT = "\ufffd"
# Tokens that the text of the next one may depend on: more than the bytes of a broken character and of a whole one.
CONTEXT = 8
# A run of byte tokens is text if all of it is UTF-8. Of a longer one, characters are believed before it ends.
LONGEST_RUN = 64


class TextStream:
    """Turns ids into text piece by piece. All pieces together are what `Tokenizer.decode` gives for all ids.

    Text is out as soon as no token to come can change it. `before` are ids that come before those of this text.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # The last tokens, and how many characters of their text are out.
        self._window: list[int] = []
        self._out, self._pending = 0, False
        # Of the run of byte tokens that the text ends with: its characters, bytes that are held back, and whether it is
        # known not to be UTF-8.
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._held, self._broken = 0, False
        self._restart([i for i in before[-2 * LONGEST_RUN :] if tokenizer.has_text(i)])

    @property
    def unfinished(self) -> bool:
        """Whether the last tokens may be a part of a character that is not whole yet, or of a run of bytes."""
        return self._pending or self._broken

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""
        if not self._tokenizer.has_text(token):
            return ""
        byte = self._tokenizer.bytes.get(token)
        if byte is not None:
            return self._push_byte(token, byte)
        broken = self._end_run()
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        # It may be the beginning of a character.
        self._pending = text.endswith(REPLACEMENT)
        piece = self._give(text, len(text) - self._pending)
        if not self._pending and (last := self._tokenizer.decode([token])):
            self._window, self._out = [token], len(last)
        elif len(self._window) >= 2 * CONTEXT:
            del self._window[:-CONTEXT]
            self._out += len(self._tokenizer.decode(self._window)) - len(text)
        return broken + piece

    def finish(self) -> str:
        """What is left, incomplete characters replaced. The text may go on, but no character does."""
        broken = self._end_run()
        text = self._tokenizer.decode(self._window)
        piece = self._give(text, len(text))
        self._restart(self._window)
        return broken + piece

    def _push_byte(self, token: int, byte: int) -> str:
        if self._broken:
            return REPLACEMENT
        self._window.append(token)
        self._held += 1
        try:
            character = self._utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            return self._break_run()
        self._pending = self._held < LONGEST_RUN or not character
        if self._pending:
            return ""
        text = self._tokenizer.decode(self._window)
        piece = self._give(text, len(text))
        self._window, self._held = self._window[-len(character.encode()) :], 0
        self._out = len(self._tokenizer.decode(self._window))
        return piece

    def _break_run(self) -> str:
        """No byte of the run is text, whatever comes."""
        piece = REPLACEMENT * self._held
        self._held, self._broken, self._pending = 0, True, False
        self._utf8.reset()
        self._out = len(self._tokenizer.decode(self._window))
        return piece

    def _end_run(self) -> str:
        """What is left of a run that ends within a character."""
        piece = self._break_run() if self._utf8.getstate()[0] else ""
        self._held, self._broken = 0, False
        return piece

    def _give(self, text: str, end: int) -> str:
        piece = text[self._out : end]
        self._out = max(self._out, end)
        return piece

    def _restart(self, before: list[int]) -> None:
        """After `before`, whose text is out, but for what the next token could still be a part of."""
        end = len(before)
        while end and before[end - 1] in self._tokenizer.bytes:
            end -= 1
        window = before[max(end - CONTEXT, 0) : end]
        while window and self._tokenizer.decode(window).endswith(REPLACEMENT):
            window.pop()
        self._window, self._out = window, len(self._tokenizer.decode(window))
        self._pending = False
