"""The generation loop: prompt in, text out, token after token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.generate.sampling import Sampling
from gecko_mlc.runtime.text.stop_strings import StopStrings
from gecko_mlc.runtime.text.stream import TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupted"]


class GenerationOptions(BaseModel):
    """What a generation is to be like. `stop` strings end it and are left out of the text."""

    model_config = ConfigDict(frozen=True)

    sampling: Sampling = Sampling()
    seed: int = Field(default=0, ge=0, lt=2**64)
    max_tokens: int = Field(default=256, ge=1, le=2**40)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()


class Generation:
    """One generation in a slot; iterating over it gives pieces of text as they become certain.

    Afterwards `tokens` are the ids drawn, `finish_reason` tells why it ended, `unconsumed` are drawn ids
    that the state has not seen yet, and the seconds spent are in `prefill_seconds`, `decode_seconds`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        slot: int,
        prompt: Sequence[int],
        options: GenerationOptions,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._tokenizer, self._slot = engine, tokenizer, slot
        self._prompt, self._options, self._interrupted = prompt, options, interrupted
        self.prompt_tokens = len(prompt)
        self.tokens: list[int] = []
        self.unconsumed: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        options, engine, slot = self._options, self._engine, self._slot
        engine.set_sampling(slot, options.sampling, options.seed)
        begun = time.perf_counter()
        if not self._consume_prompt():
            self.finish_reason = "interrupted"
            return
        self.prefill_seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        stream, stops = TextStream(self._tokenizer), StopStrings(options.stop)
        while self.finish_reason is None:
            engine.sample([slot])
            token = engine.token(slot)
            if token in options.stop_tokens:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if text := stops.push(stream.push(token)):
                yield text
            if stops.found:
                self.finish_reason = "stop"
            elif len(self.tokens) >= options.max_tokens:
                self.finish_reason, self.unconsumed = "length", [token]
            elif self._interrupted():
                self.finish_reason, self.unconsumed = "interrupted", [token]
            else:
                engine.decode([slot])
                self.decode_seconds = time.perf_counter() - begun
        self.decode_seconds = time.perf_counter() - begun
        if text := stops.push(stream.finish()) + stops.finish():
            yield text

    def _consume_prompt(self) -> bool:
        """Feed the prompt a chunk at a time, so that an interrupt is heard; False if one was."""
        size = self._engine.chunk_size
        for start in range(0, max(len(self._prompt), 1), size):
            if self._interrupted():
                return False
            self._engine.extend(self._slot, self._prompt[start : start + size])
        return True
