"""Text from ids as they come: characters split over tokens come out whole."""

from __future__ import annotations

from gecko_mlc.runtime.text.tokenizer import Tokenizer

# A character has at most 4 bytes; waiting for more would hide text that never becomes whole.
_MAX_PENDING = 8


class TextStream:
    """Turns ids into text piece by piece; characters split over tokens come out whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Ids whose text is out already but gives the next ones their context, and those still to come.
        self._context: list[int] = []
        self._pending: list[int] = []

    @property
    def pending(self) -> bool:
        """Whether text is still to come of tokens that were pushed."""
        return bool(self._pending)

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
