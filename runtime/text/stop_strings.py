"""Stop strings: text passes until one is complete."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string is complete, holding back what may be the beginning of one.

    Text counts in characters from the first `push` on: `passed` of them are certain to come before any stop string,
    where a stop string begins once it is `found`. Special tokens' text is hidden: it can be of a stop string, but is
    never passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Matcher(stop) for stop in stops if stop]
        self._held = ""
        self._hidden: list[tuple[int, int]] = []  # Of the held text: begin and end of each special token.
        self.found = False
        self.passed = 0

    def push(self, text: str, hidden: bool = False) -> str:
        """What is certain to be before any stop string, given `text` more; without what is hidden."""
        if self.found:
            return ""
        if hidden:
            self._hidden.append((len(self._held), len(self._held) + len(text)))
        before = len(self._held)
        self._held += text
        ends = [(stop, end) for stop in self._stops if (end := stop.push(text)) is not None]
        if ends:
            self.found = True
            return self._pass(min(before + end - stop.length for stop, end in ends))
        return self._pass(len(self._held) - max((stop.matched for stop in self._stops), default=0))

    def finish(self) -> str:
        """What was held back, when nothing more comes."""
        return "" if self.found else self._pass(len(self._held))

    def _pass(self, length: int) -> str:
        visible = list(self._held[:length])
        for begin, end in self._hidden:
            visible[begin:end] = [""] * len(visible[begin:end])
        self._hidden = [(max(b - length, 0), e - length) for b, e in self._hidden if e > length]
        self._held = self._held[length:]
        self.passed += length
        return "".join(visible)


class _Matcher:
    """Finds one string in text that comes in pieces, as Knuth, Morris and Pratt do: in a step or two a character."""

    def __init__(self, stop: str) -> None:
        self._stop, self.length = stop, len(stop)
        # How long a beginning of the string the text ends with.
        self.matched = 0
        # For each of its beginnings, how long a shorter beginning that one ends with.
        self._shorter = [0]
        for letter in stop[1:]:
            self.push(letter)
            self._shorter.append(self.matched)
        self.matched = 0

    def push(self, text: str) -> int | None:
        """Where in `text` the string is complete for the first time; None if it is not."""
        for place, letter in enumerate(text):
            while self.matched and self._stop[self.matched] != letter:
                self.matched = self._shorter[self.matched - 1]
            self.matched += self._stop[self.matched] == letter
            if self.matched == self.length:
                return place + 1
        return None
