"""A sequence: drawn tokens in, certain text out. It knows no device and waits for none."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Literal, NamedTuple

from gecko_mlc.formats.library import NO_TOKEN
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.text.stop_strings import StopStrings
from gecko_mlc.runtime.text.stream import REPLACEMENT, TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupted", "error"]


class Answer(NamedTuple):
    """What of the drawn tokens was given out as text: the first `tokens` of them, and then the text `rest`, a part of
    the next one's."""

    tokens: int
    rest: str


class Sequence:
    """The text of tokens that are drawn one by one.

    `drawn` are all of them, after the ids `before`. `finish_reason` is None until one ended the text.
    """

    def __init__(self, tokenizer: Tokenizer, options: GenerationOptions, before: Tokens[int] = ()) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._stream, self._stops = TextStream(tokenizer, before), StopStrings(options.stop)
        # The text that came with each token, and where in all text it ends: None within a character or a run of bytes.
        self._pieces: list[str] = []
        self._ends: list[int | None] = []
        self._length = self._settled = self._looked = 0
        self.drawn: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens that text was made of: those drawn, but for one that ended it."""
        return self.drawn[: len(self._pieces)]

    @property
    def settled(self) -> int:
        """The first tokens whose text is all given out; a stop string cannot take them back."""
        return self._settled

    def push(self, token: int) -> str:
        """The text that is certain with `token`. Sets `finish_reason` where that ends it, as `NO_TOKEN` does."""
        self.drawn.append(token)
        if token == NO_TOKEN:
            return self.end("error")
        if token in self._options.stop_tokens:
            return self.end("stop")
        special = self._tokenizer.special_text(token)
        if special is None:
            text = self._stream.push(token)
            given = self._stops.push(text)
            self._append(text)
        else:
            given = self._finish_character() + self._stops.push(special, hidden=True)
            self._append(special)
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self._pieces) >= self._options.max_tokens:
            given += self.end("length")
        self._settle()
        return given

    def end(self, reason: FinishReason) -> str:
        """The text that was held back, as nothing more comes."""
        given = self._finish_character() + self._stops.finish()
        self.finish_reason = "stop" if self._stops.found else reason
        self._settle()
        return given

    def answer(self) -> Answer:
        """What was given out."""
        count = self._settled
        if count < len(self._pieces) and self._tokenizer.special_text(self.drawn[count]) is not None:
            return Answer(count, "")
        end = self._ends[count - 1] if count else 0
        return Answer(count, "".join(self._pieces[count:])[: self._stops.passed - (end or 0)])

    def _append(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)
        self._ends.append(None if self._stream.unfinished else self._length)

    def _finish_character(self) -> str:
        """The text that is certain as no character goes on after the last token."""
        text = self._stream.finish()
        if self._pieces:
            self._pieces[-1] += text
            self._length += len(text)
            # What follows an answer must not become a part of its broken character: that is told as text.
            if not self._pieces[-1].endswith(REPLACEMENT):
                self._ends[-1] = self._length
        return self._stops.push(text)

    def _settle(self) -> None:
        for count in range(self._looked, len(self._ends)):
            end = self._ends[count]
            self._looked = count
            if end is not None and end > self._stops.passed:
                return
            if end is not None:
                self._settled = count + 1
