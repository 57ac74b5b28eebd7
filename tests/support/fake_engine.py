"""An engine without a model: what it draws follows from all that its state has seen. It keeps a record of its calls."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class FakeState(NamedTuple):
    """Tokens seen, seed and draws: all that what comes next depends on."""

    seen: tuple[int, ...] = ()
    seed: int = 0
    drawn: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """Tokens seen."""
        return len(self.seen)


class FakeEngine:
    """Draws `script` in its first generation, token by token, and then what a hash of its state says, of `vocabulary`.

    `asynchronous` as a GPU, it has to be asked late for what it drew. `calls` are "extend", "step N" and "read N".
    """

    def __init__(
        self,
        script: Sequence[int] = (),
        vocabulary: Sequence[int] = (0,),
        asynchronous: bool = True,
        slots: int = 1,
        chunk_size: int = 8,
        tile: int = 4,
    ) -> None:
        self.script, self.vocabulary, self.asynchronous = list(script), list(vocabulary), asynchronous
        self.slots, self.chunk_size, self.tile = slots, chunk_size, tile
        self.lock = threading.RLock()
        self.states = [FakeState()] * slots
        self.calls: list[str] = []
        self._steps = self._generations = 0
        self._checkpoints: dict[int, FakeState] = {}
        self._set_aside: dict[FakeState, FakeState] = {}

    @property
    def positions(self) -> list[int]:
        return [len(state.seen) for state in self.states]

    def reset(self, slot: int) -> None:
        self.states[slot] = FakeState()

    def set_sampling(self, slot: int, sampling: Any, seed: int) -> None:
        self._generations += 1
        self.set_draws(slot, seed, [])

    def set_draws(self, slot: int, seed: int, tokens: Sequence[int]) -> None:
        self.states[slot] = self.states[slot]._replace(seed=seed, drawn=tuple(tokens))

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self.calls.append("extend")
        self._see(slot, tokens)

    def decode(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._see(slot, [self.token(slot)])

    def sample(self, slots: Sequence[int]) -> None:
        self._steps += 1
        self.calls.append(f"step {self._steps}")
        for slot in slots:
            state = self.states[slot]
            if self._generations == 1 and len(state.drawn) < len(self.script):
                token = self.script[len(state.drawn)]
            else:
                token = self.vocabulary[zlib.crc32(repr(state).encode()) % len(self.vocabulary)]
            self.states[slot] = state._replace(drawn=(*state.drawn, token))

    def step(self, slots: Sequence[int]) -> None:
        self.decode(slots)
        self.sample(slots)

    def token(self, slot: int) -> int:
        return self.states[slot].drawn[-1]

    def fetch_tokens(self, slots: Sequence[int]) -> Callable[[], list[int]]:
        tokens, step = [self.token(slot) for slot in slots], self._steps

        def read() -> list[int]:
            self.calls.append(f"read {step}")
            return tokens

        return read

    def ends_tile(self, position: int) -> bool:
        return (position + 1) % self.tile == 0

    def synchronize(self) -> None:
        pass

    def save(self, slot: int) -> FakeState:
        state = self.states[slot]
        if slot in self._checkpoints:
            self._set_aside[state] = self._checkpoints.pop(slot)
        return state

    def load(self, slot: int, saved: FakeState) -> None:
        self.states[slot] = saved
        if saved in self._set_aside:
            self._checkpoints[slot] = self._set_aside.pop(saved)

    def checkpoint(self, slot: int) -> FakeState:
        self._checkpoints[slot] = self.states[slot]
        return self.states[slot]

    def restore(self, slot: int, checkpoint: FakeState) -> None:
        assert self._checkpoints[slot] == checkpoint
        self.states[slot] = checkpoint

    def release(self, slot: int) -> None:
        self._checkpoints.pop(slot, None)

    def _see(self, slot: int, tokens: Sequence[int]) -> None:
        self.states[slot] = self.states[slot]._replace(seen=(*self.states[slot].seen, *tokens))
