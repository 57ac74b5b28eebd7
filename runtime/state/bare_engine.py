"""Engines that can do no more than consume tokens and draw them: what streams need besides, by feeding tokens again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class History(NamedTuple):
    """A state as the tokens that led to it."""

    tokens: list[int]

    @property
    def position(self) -> int:
        """How many they are."""
        return len(self.tokens)


class BareEngine:
    """An engine with `chunk_size`, `reset`, `extend`, `set_sampling`, `sample`, `decode` and `token` alone, with
    checkpoints: its state is what tokens led to."""

    asynchronous = False

    def __init__(self, engine: Any) -> None:
        self._engine, self.lock = engine, threading.RLock()
        self.slots: int = getattr(engine, "slots", 1)
        self.chunk_size: int = engine.chunk_size
        self._fed: list[list[int]] = [[] for _ in range(self.slots)]

    @property
    def positions(self) -> list[int]:
        """Tokens that each slot has consumed."""
        return [len(tokens) for tokens in self._fed]

    def reset(self, slot: int) -> None:
        """The state before the first token."""
        self._fed[slot] = []
        self._engine.reset(slot)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """Consume `tokens`."""
        self._engine.extend(slot, tokens)
        self._fed[slot] += tokens

    def set_sampling(self, slot: int, sampling: Any, seed: int) -> None:
        """How `sample` draws."""
        self._engine.set_sampling(slot, sampling, seed)

    def sample(self, slots: Sequence[int]) -> None:
        """Draw the next current token of each slot."""
        self._engine.sample(slots)

    def decode(self, slots: Sequence[int]) -> None:
        """Consume the current token of each slot."""
        tokens = [self._engine.token(slot) for slot in slots]
        self._engine.decode(slots)
        for slot, token in zip(slots, tokens, strict=True):
            self._fed[slot].append(token)

    def step(self, slots: Sequence[int]) -> None:
        """Both."""
        self.decode(slots)
        self.sample(slots)

    def fetch_tokens(self, slots: Sequence[int]) -> Callable[[], list[int]]:
        """The current token of each slot."""
        tokens = [self._engine.token(slot) for slot in slots]
        return lambda: tokens

    def set_draws(self, slot: int, seed: int, tokens: Sequence[int]) -> None:
        """It counts no draws."""

    def synchronize(self) -> None:
        """Its calls are done when they return."""

    def save(self, slot: int) -> History:
        """The state of a slot."""
        return History(list(self._fed[slot]))

    def load(self, slot: int, saved: History) -> None:
        """Continue in `slot` as what was saved would."""
        self.reset(slot)
        if saved.tokens:
            self.extend(slot, saved.tokens)

    def checkpoint(self, slot: int) -> History:
        """What `restore` goes back to."""
        return self.save(slot)

    def restore(self, slot: int, checkpoint: History) -> None:
        """Back to a checkpoint."""
        self.load(slot, checkpoint)

    def release(self, slot: int) -> None:
        """No checkpoint of the slot will be restored any more."""
