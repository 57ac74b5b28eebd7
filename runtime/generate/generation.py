"""One answer, to be iterated over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gecko_mlc.runtime.generate.scheduler import Stream, run
from gecko_mlc.runtime.generate.sequence import FinishReason


class Generation(Iterator[str]):
    """Pieces of an answer's text, as they become certain.

    Nothing happens before the first is asked for. Afterwards `tokens` are the ids that the text was made of,
    `finish_reason` tells why it ended, and the seconds spent are in `prefill_seconds` and `decode_seconds`. The state
    says what was given out, also where nobody reads to the end: `close` ends it there.
    """

    def __init__(self, stream: Stream, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.stream = stream
        self._pieces = (text for _, text in run([stream], interrupted))

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End it with what was given out."""
        self._pieces.close()

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.stream.prompt)

    @property
    def tokens(self) -> list[int]:
        """The ids that the text was made of."""
        return self.stream.sequence.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it has not."""
        return self.stream.sequence.finish_reason

    @property
    def prefill_seconds(self) -> float:
        """What the prompt took."""
        return self.stream.prefill_seconds

    @property
    def decode_seconds(self) -> float:
        """What the tokens took."""
        return self.stream.decode_seconds
