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
        self._stops = [stop for stop in stops if stop]
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
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._pass(min(places))
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        return self._pass(len(self._held) - keep)

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

    def _overlap(self, stop: str) -> int:
        """The longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
