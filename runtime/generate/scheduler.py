"""The generation loop: streams that share an engine are stepped together, and a device never waits for the host.

A device that works while its host goes on is given step n + 1 before token n is read. What was so drawn ahead, and
what a stop string takes back, is undone: the state goes back to a checkpoint, never more than a tile away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from typing import Any

from gecko_mlc.formats.errors import LogitsError
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.sequence import Sequence
from gecko_mlc.runtime.state.slots import Lease, entered
from gecko_mlc.runtime.text.stream import TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer


class Stream:
    """A prompt and its answer in a lease's state.

    `follow` is what comes after an answer, like a template's separator. `progress`, where there is one, is told of the
    prompt's tokens that are consumed, and of all. Afterwards `pending` are ids that the state has
    not seen of what was given out, and `following` those of `follow`.
    """

    def __init__(
        self,
        lease: Lease,
        tokenizer: Tokenizer,
        prompt: Tokens[int],
        options: GenerationOptions,
        follow: str = "",
    ) -> None:
        self.lease, self.prompt, self.options = lease, prompt, options
        self.sequence = Sequence(tokenizer, options, prompt)
        self.progress: Callable[[int, int], None] | None = None
        self.pending: list[int] = []
        self.following = tokenizer.encode(follow, special=True, begins=False)
        self.prefill_seconds = self.decode_seconds = 0.0
        self._tokenizer, self._follow = tokenizer, follow
        self._first = lease.position
        self._answering = False
        # A checkpoint, and how many of the answer's tokens it has seen.
        self._checkpoint: tuple[Any, int] | None = None

    @property
    def undone(self) -> bool:
        """Whether the prompt was not consumed: the state is as it was before it."""
        return not self._answering

    @property
    def consumed(self) -> int:
        """The answer's tokens that the state has seen."""
        return self.lease.position - self._first - len(self.prompt)

    def prefill(self, interrupted: Callable[[], bool]) -> bool:
        """Consume the prompt a chunk at a time, so that an interrupt is heard; False if one was."""
        engine, size = self.lease.engine, self.lease.engine.chunk_size
        begun = time.perf_counter()
        with self.lease as slot:
            engine.set_sampling(slot, self.options.sampling, self.options.seed)
            if self._first:
                self._checkpoint = engine.checkpoint(slot), 0
        for start in range(0, max(len(self.prompt), 1), size):
            if interrupted():
                self.sequence.finish_reason = "interrupted"
                return False
            with self.lease as slot:
                engine.extend(slot, self.prompt[start : start + size])
                if self.progress is not None:
                    engine.synchronize()
            if self.progress is not None:
                self.progress(min(start + size, len(self.prompt)), len(self.prompt))
        with self.lease as slot:
            engine.synchronize()
        self._answering = True
        self._drop_checkpoint()
        self.prefill_seconds = time.perf_counter() - begun
        return True

    def may_run_ahead(self) -> bool:
        """Whether the next token can be consumed before it is read: it can be undone, and is not known to be the last.

        Not over a tile's end, where much of the state changes.
        """
        left = self.options.max_tokens - len(self.sequence.drawn)
        return self._checkpoint is not None and left > 1 and not self._ends_tile()

    def keep_undoable(self, ahead: bool) -> None:
        """Before the last token that was drawn is consumed: a checkpoint, where what follows may be undone."""
        engine = self.lease.engine
        if self.sequence.settled >= self.consumed:
            self._drop_checkpoint()
            if self.sequence.settled < len(self.sequence.drawn) or (ahead and not self._ends_tile()):
                with self.lease as slot:
                    self._checkpoint = engine.checkpoint(slot), self.consumed

    def settle(self) -> None:
        """Make the state say what was given out, or know what of it is `pending`."""
        if not self._answering:
            self._undo()
            return
        drawn, consumed, answer = self.sequence.drawn, self.consumed, self.sequence.answer()
        if consumed > answer.tokens:
            # What was consumed besides may be what follows anyway; a token that was never read is not.
            following = None
            if not answer.rest and consumed <= len(drawn):
                following = self._following(drawn[: answer.tokens], drawn[answer.tokens : -1])
            besides = drawn[answer.tokens : consumed]
            self.following = following or self.following
            if following is not None and following[: len(besides)] == besides:
                self.following = following[len(besides) :]
            else:
                consumed = self._restore()
        rest = self._tokenizer.encode(answer.rest, begins=False) if answer.rest else []
        self.pending = [*drawn[consumed : answer.tokens], *rest]
        with self.lease as slot:
            self.lease.engine.set_draws(slot, self.options.seed, drawn[: answer.tokens])
        self._drop_checkpoint()

    def check(self) -> None:
        """Raise `LogitsError` where the answer ended because no token could be drawn."""
        if self.sequence.finish_reason == "error":
            raise LogitsError(self._first + len(self.prompt) + len(self.sequence.drawn) - 1)

    def _ends_tile(self) -> bool:
        return bool(self.lease.engine.ends_tile(self.lease.position))

    def _undo(self) -> None:
        """Back to before the prompt."""
        if self.lease.position != self._first:
            if self._first:
                self._restore()
            else:
                self.lease.reset()
        self._drop_checkpoint()

    def _restore(self) -> int:
        """Back to the checkpoint; the answer's tokens that it has seen."""
        assert self._checkpoint is not None
        checkpoint, consumed = self._checkpoint
        with self.lease as slot:
            self.lease.engine.restore(slot, checkpoint)
        return consumed

    def _drop_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint = None
            with self.lease as slot:
                self.lease.engine.release(slot)

    def _following(self, said: list[int], drawn: list[int]) -> list[int] | None:
        """Ids of `follow` that begin with `drawn`, those that a loop that waits for each token has consumed after what
        was `said`; None where it does not begin so."""
        if self.following[: len(drawn)] == drawn:
            return self.following
        stream = TextStream(self._tokenizer, [*self.prompt, *said])
        text = "".join(map(stream.push, drawn))
        whole = not stream.unfinished
        begin = self._tokenizer.encode(text, special=True, begins=False)
        special = any(self._tokenizer.special_text(i) is not None for i in [*drawn, *begin])
        if special or not whole or not text or not self._follow.startswith(text):
            return None
        return [*drawn, *self._tokenizer.encode(self._follow[len(text) :], special=True, begins=False)]


def run(streams: Tokens[Stream], interrupted: Callable[[], bool] = lambda: False) -> Iterator[tuple[Stream, str]]:
    """Answer the prompts of streams of one engine: pieces of text as they become certain, with whose they are.

    However it ends, by an exception or because nobody reads on, every state is settled. Raises `LogitsError`, when all
    others have ended, where no token could be drawn for one of them.
    """
    engine = streams[0].lease.engine
    try:
        live = [stream for stream in streams if stream.prefill(interrupted)]
        begun = time.perf_counter()
        read = _draw(engine, live, first=True)
        while live:
            ahead = None
            if engine.asynchronous and all(stream.may_run_ahead() for stream in live):
                ahead = _draw(engine, live)
            tokens = read()
            stopped = interrupted()
            for stream, token in zip(live, tokens, strict=True):
                text = stream.sequence.push(token)
                if stopped and stream.sequence.finish_reason is None:
                    text += stream.sequence.end("interrupted")
                stream.decode_seconds = time.perf_counter() - begun
                if text:
                    yield stream, text
            going = [i for i, stream in enumerate(live) if stream.sequence.finish_reason is None]
            live = [live[i] for i in going]
            if ahead is not None:
                read = _some(ahead, going)
            elif live:
                for stream in live:
                    stream.keep_undoable(engine.asynchronous)
                read = _draw(engine, live)
        for stream in streams:
            stream.check()
    finally:
        for stream in streams:
            stream.settle()


def _draw(engine: Any, streams: Tokens[Stream], first: bool = False) -> Callable[[], list[int]]:
    """Have each stream's next token drawn, after the last one was consumed unless it is the `first`; a function that
    waits for those."""
    if not streams:
        return list
    with entered(stream.lease for stream in streams) as slots:
        (engine.sample if first else engine.step)(slots)
        fetched: Callable[[], list[int]] = engine.fetch_tokens(slots)
        return fetched


def _some(read: Callable[[], list[int]], places: list[int]) -> Callable[[], list[int]]:
    def chosen() -> list[int]:
        tokens = read()
        return [tokens[i] for i in places]

    return chosen
