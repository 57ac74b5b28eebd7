"""The engine: a library, its parameters, and the recurrent state of its slots.

Positions live on the device. The host mirrors them by counting, to cut prompts at chunk boundaries and to
end chunks; a caller never sees the rule.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from gecko_mlc.formats.errors import GeckoError, LogitsError
from gecko_mlc.formats.library import NO_TOKEN, TensorSpec
from gecko_mlc.formats.memory import MemoryShortage, is_shortage
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.devices.memory import free_memory
from gecko_mlc.runtime.forks import mind_forks
from gecko_mlc.runtime.interrupts import interrupts_later
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.memory import nbytes, told_of_shortage, workspace_bytes
from gecko_mlc.runtime.players.player import Tensor
from gecko_mlc.runtime.state.checkpoint import Checkpoint, Saved

# Bytes of results that it takes a look at what is free for.
_MUCH = 1 << 26

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _alone(method: Callable[Concatenate[Engine, _P], _T]) -> Callable[Concatenate[Engine, _P], _T]:
    """A method that no other thread's call comes in between of."""

    @functools.wraps(method)
    def locked(engine: Engine, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with engine.lock:
            try:
                return method(engine, *args, **kwargs)
            except Exception as error:
                if isinstance(error, MemoryShortage) or not is_shortage(error):
                    raise
                needs = {"the workspace": workspace_bytes(engine.metadata)}
                raise MemoryShortage(needs, engine.player.free_memory()) from None

    return locked


class Engine:
    """Runs token ids through the slots of one library. Each call holds `lock`; hold it for calls that belong together.

    `positions[slot]` is the number of tokens a slot has consumed. `parameters` are the tensors of the
    metadata's list, in its order. Where `asynchronous`, calls return before the device has done what they say.
    Raises `GeckoError` when the state does not fit into memory.
    """

    def __init__(self, library: Library, parameters: Sequence[Tensor]) -> None:
        self.lock = threading.RLock()
        self.metadata, self.player = library.metadata, library.player
        mind_forks(self)
        self.asynchronous, self.slots = self.player.asynchronous, self.metadata.max_batch_size
        self.chunk_size: int = self.metadata.config["chunk_size"]
        self.vocab_size: int = self.metadata.config["vocab_size"]
        self._specs = {spec.name: spec for spec in self.metadata.state}
        self.num_outputs: int = self._specs["logits"].shape[0]
        # Arguments keep their addresses: a captured graph replays those it was captured with.
        piece = self.metadata.prefill_chunk_size
        arguments = [
            TensorSpec(name="slots", shape=(max(self.slots, 2),), dtype="int32"),
            TensorSpec(name="tokens", shape=(piece,), dtype="int32"),
            TensorSpec(name="targets", shape=(piece,), dtype="int32"),
        ]
        whole = [s.model_copy(update={"shape": (self.slots, *s.shape)}) for s in self.metadata.state]
        with told_of_shortage({"the state": self.state_bytes()}, self.player.free_memory()):
            state = self.player.allocate(whole)
            self._slot_ids, self._tokens, self._targets = self.player.allocate(arguments)
        self._state = {spec.name: tensor for spec, tensor in zip(whole, state, strict=True)}
        self.player.bind(state, parameters)
        self._named: list[int] = []  # What `_slot_ids` holds.
        self.positions = [0] * self.slots
        self._checkpoints: dict[int, Checkpoint] = {}
        # Where those keep what is on the device, and what is copied there and back.
        self._spares: dict[tuple[int, str], Tensor] = {}
        self._copies: dict[tuple[int, tuple[str, ...], bool], tuple[tuple[Tensor, Tensor], ...]] = {}
        for slot in range(self.slots):
            self.reset(slot)

    def state_bytes(self) -> int:
        """Bytes of the state of all slots."""
        return self.slots * sum(map(nbytes, self.metadata.state))

    # Tokens in

    @_alone
    def extend(
        self,
        slot: int,
        tokens: Sequence[int],
        on_piece: Callable[[str, int], None] = lambda function, count: None,
    ) -> None:
        """Consume `tokens`, leaving the logits of the last one in the state.

        `on_piece` is told of every call, once its tokens are in: a piece of one token goes through
        `decode`. Raises `GeckoError` for an empty list or ids outside the vocabulary.
        """
        for piece in self._pieces(slot, tokens):
            if len(piece) == 1:
                self.set_token(slot, piece[0])
                self.decode([slot])
                on_piece("decode", 1)
            else:
                self._prefill("prefill", slot, piece)
                on_piece("prefill", len(piece))

    @_alone
    def extend_logits(
        self,
        slot: int,
        tokens: Sequence[int],
        on_piece: Callable[[str, int], None] = lambda function, count: None,
    ) -> np.ndarray:
        """Consume `tokens`; the fp32 logits [n, O] of all of them."""
        needed = 2 * len(tokens) * self.num_outputs * 4  # Pieces, and all together.
        with told_of_shortage({"the logits": needed}, free_memory() if needed >= _MUCH else None):
            result = []
            for piece in self._pieces(slot, tokens):
                if len(piece) == 1:
                    self.set_token(slot, piece[0])
                    self.decode([slot])
                    on_piece("decode", 1)
                    result.append(self.logits(slot)[None])
                else:
                    logits = self._result(len(piece), self.num_outputs)
                    self._prefill("prefill_logits", slot, piece, logits)
                    on_piece("prefill_logits", len(piece))
                    result.append(self.player.download(logits))
            return np.concatenate(result)

    @_alone
    def score(self, slot: int, tokens: Sequence[int], targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Consume `tokens`; log-probabilities [n] of the tokens `targets` that follow each of them, and
        the entropies [n] of the distributions, in nats. Raises `LogitsError` where logits are no numbers."""
        if not len(tokens):
            raise GeckoError("no tokens: expected at least one")
        if len(targets) != len(tokens):
            raise GeckoError(f"{len(tokens)} tokens but {len(targets)} targets")
        self._check_ids(targets, self.num_outputs)
        results, done, first = [], 0, self.positions[slot]
        for piece in self._pieces(slot, tokens):
            n = len(piece)
            view = self._filled(self._targets, targets[done : done + n])
            outputs = [self._result(n) for _ in range(2)]
            self._prefill("score", slot, piece, view, *outputs)
            results.append([self.player.download(output) for output in outputs])
            done += n
        log_probabilities, entropies = (np.concatenate(parts) for parts in zip(*results, strict=True))
        numbers = np.isfinite(log_probabilities) & np.isfinite(entropies)
        if not numbers.all():
            raise LogitsError(first + int(numbers.argmin()) + 1)
        return log_probabilities, entropies

    @_alone
    def decode(self, slots: Sequence[int]) -> None:
        """Consume the current token of each slot."""
        self._decode(slots)

    @_alone
    def step(self, slots: Sequence[int]) -> None:
        """Consume the current token of each slot, and draw the next one: `decode` and `sample`, issued as one."""
        if self.asynchronous:
            self._decode(slots, "sample")
        else:
            self.decode(slots)
            self.sample(slots)

    def ends_tile(self, position: int) -> bool:
        """Whether much of the state changes when the token at `position` is consumed: a tile or a chunk ends."""
        offset = position % self.chunk_size + 1
        return offset == self.chunk_size or offset % (self.metadata.absorb_tile or self.chunk_size) == 0

    @_alone
    def synchronize(self) -> None:
        """Wait until the device has done everything it was told. Raises `GeckoError` if any of it failed."""
        self.player.synchronize()

    # Tokens out

    @_alone
    def sample(self, slots: Sequence[int]) -> None:
        """Draw the next current token of each slot from its logits: `NO_TOKEN` where those are no numbers."""
        self.player.replay(["sample"], [self._slot_view(slots)])

    @_alone
    def fetch_tokens(self, slots: Sequence[int]) -> Callable[[], list[int]]:
        """Begin to read the current token of each slot as it is now, after `sample` the one drawn: what is returned
        waits for that, and for nothing that is issued later."""
        self._check_slots(slots)
        read, slots = self.player.fetch(self._state["token"]), list(slots)
        return lambda: [int(token) for token in read()[slots]]

    @_alone
    def set_sampling(self, slot: int, sampling: Sampling, seed: int) -> None:
        """How `sample` draws in `slot` from now on; forgets the tokens counted for penalties."""
        row = [getattr(sampling, name) for name in self.metadata.sampling_parameters]
        self.write("sampling", slot, np.array(row, np.float32))
        self._write_draws(slot, seed, ())

    @_alone
    def set_token(self, slot: int, token: int) -> None:
        """Make `token` the current one, which `decode` consumes."""
        self._check_ids([token], self.vocab_size)
        self.write("token", slot, np.array(token, np.int32))

    @_alone
    def token(self, slot: int) -> int:
        """The current token. Raises `LogitsError` where `sample` could draw none."""
        token = int(self.read("token", slot))
        if token == NO_TOKEN:
            raise LogitsError(self.positions[slot])
        return token

    @_alone
    def logits(self, slot: int) -> np.ndarray:
        """The fp32 logits [O] after the last token consumed."""
        return self.read("logits", slot)

    # Slots

    @_alone
    def reset(self, slot: int) -> None:
        """The state before the first token."""
        self.player.play(["reset_slot"], [self._slot_view([slot])])
        self.positions[slot] = 0

    @_alone
    def copy(self, source: int, destination: int) -> None:
        """Make `destination` continue as `source` does."""
        self.player.play(["copy_slot"], [self._slot_view([source, destination])])
        self.positions[destination] = self.positions[source]

    @_alone
    def read(self, name: str, slot: int) -> np.ndarray:
        """One slot's part of the state tensor `name`."""
        return self.player.download(self._slot_part(name, slot)).reshape(self._specs[name].shape)

    @_alone
    def write(self, name: str, slot: int, value: np.ndarray) -> None:
        """Replace one slot's part of the state tensor `name`."""
        self.player.upload(self._slot_part(name, slot), value)

    # States kept and put back

    @_alone
    def save(self, slot: int) -> Saved:
        """All of a slot's state, in the host's memory, with its checkpoint."""
        tensors = {spec.name: self.read(spec.name, slot) for spec in self.metadata.state}
        if (checkpoint := self._checkpoints.pop(slot, None)) is not None:
            for name, value in checkpoint.kept.items():
                if not isinstance(value, np.ndarray):
                    checkpoint.kept[name] = self.player.download(value)
        return Saved(self.positions[slot], tensors, checkpoint)

    @_alone
    def load(self, slot: int, saved: Saved) -> None:
        """Continue in `slot` as what was saved would."""
        for name, value in saved.tensors.items():
            self.write(name, slot, value)
        self.positions[slot] = saved.position
        if saved.checkpoint is not None:
            self._checkpoints[slot] = saved.checkpoint

    @_alone
    def checkpoint(self, slot: int) -> Checkpoint:
        """The slot's state, to go back to; in place of its checkpoint before."""
        self._checkpoints[slot] = Checkpoint(self.positions[slot])
        return self._checkpoints[slot]

    @_alone
    def restore(self, slot: int, checkpoint: Checkpoint) -> None:
        """Back to the slot's checkpoint."""
        on_host = {name: value for name, value in checkpoint.kept.items() if isinstance(value, np.ndarray)}
        names = tuple(name for name in checkpoint.kept if name not in on_host)
        self.player.copy(self._pairs(slot, names, back=True))
        for name, value in on_host.items():
            self.write(name, slot, value)
        self.positions[slot] = checkpoint.position

    def release(self, slot: int) -> None:
        """The slot's checkpoint is not needed any more."""
        self._checkpoints.pop(slot, None)

    @_alone
    def set_draws(self, slot: int, seed: int, tokens: Sequence[int]) -> None:
        """The generator, counts and recent tokens as they are when `tokens` were drawn since `set_sampling`."""
        self._write_draws(slot, seed, tokens)
        recent = np.zeros(self._specs["recent"].shape, np.int32)
        for place in range(max(len(tokens) - len(recent), 0), len(tokens)):
            recent[place % len(recent)] = tokens[place]
        self.write("recent", slot, recent)
        self.write("token", slot, np.array(tokens[-1] if tokens else 0, np.int32))

    # The rest is private.

    def _write_draws(self, slot: int, seed: int, tokens: Sequence[int]) -> None:
        """The generator and the counts after `tokens` were drawn."""
        words = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, len(tokens)], np.uint32)
        self.write("random", slot, words.view(np.int32))
        counts = np.bincount(np.asarray(tokens, np.int64), minlength=self.num_outputs)
        self.write("counts", slot, counts.astype(np.int32))

    def _pieces(self, slot: int, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Cut `tokens` so that no piece crosses a chunk boundary or outgrows the workspace."""
        if not len(tokens):
            raise GeckoError("no tokens: expected at least one")
        self._check_slots([slot])
        self._check_ids(tokens, self.vocab_size)
        start = 0
        while start < len(tokens):
            room = self.chunk_size - self.positions[slot] % self.chunk_size
            piece = tokens[start : start + min(room, self.metadata.prefill_chunk_size)]
            yield piece
            start += len(piece)

    def _prefill(self, function: str, slot: int, piece: Sequence[int], *inputs: Tensor) -> None:
        arguments = [self._filled(self._tokens, piece), *inputs, self._slot_view([slot])]
        whole = function == "prefill" and len(piece) == self.metadata.prefill_chunk_size
        with interrupts_later():
            self._keep_changing(function, [slot])
            (self.player.replay if whole else self.player.play)([function], arguments)
            self._advance([slot], len(piece))

    def _decode(self, slots: Sequence[int], *functions: str) -> None:
        """`decode`, and `functions` after it, of each slot."""
        view = self._slot_view(slots)
        with interrupts_later():
            if any(self._completes_tile(slot) for slot in slots):
                self._keep_changing("absorb", slots)
                self.player.replay(["absorb"], [view])
            self._keep_changing("decode", slots)
            self.player.replay(["decode", *functions], [view])
            self._advance(slots, 1)

    def _advance(self, slots: Sequence[int], count: int) -> None:
        for slot in slots:
            self.positions[slot] += count
        complete = [slot for slot in slots if self.positions[slot] % self.chunk_size == 0]
        if complete:
            self._keep_changing("end_chunk", complete)
            self.player.replay(["end_chunk"], [self._slot_view(complete)])

    def _completes_tile(self, slot: int) -> bool:
        """Whether the previous chunk's tile is to be absorbed when the slot's next token is decoded."""
        position = self.positions[slot]
        return self.metadata.absorb_tile is not None and position >= self.chunk_size and self.ends_tile(position)

    def _keep_changing(self, function: str, slots: Sequence[int]) -> None:
        """For the checkpoints of slots: what `function` is about to change."""
        for slot in slots:
            checkpoint = self._checkpoints.get(slot)
            if checkpoint is None or function in checkpoint.called:
                continue
            checkpoint.called.add(function)
            names = [n for n, s in self._specs.items() if function in s.changed_by and n not in checkpoint.kept]
            # On the device what changes within a chunk: the host would wait for it.
            often = tuple(name for name in names if self._specs[name].changed_by != ("end_chunk",))
            pairs = self._pairs(slot, often)
            self.player.copy(pairs)
            checkpoint.kept.update({name: copy for name, (_, copy) in zip(often, pairs, strict=True)})
            checkpoint.kept.update({name: self.read(name, slot) for name in names if name not in often})

    def _pairs(self, slot: int, names: tuple[str, ...], back: bool = False) -> tuple[tuple[Tensor, Tensor], ...]:
        """A slot's parts of state tensors and where its checkpoint keeps them, or `back`; the same each time."""
        key = (slot, names, back)
        if key not in self._copies and back:
            self._copies[key] = tuple((copy, part) for part, copy in self._pairs(slot, names))
        elif key not in self._copies:
            for name in names:
                if (slot, name) not in self._spares:
                    (self._spares[slot, name],) = self.player.allocate([self._specs[name]])
            self._copies[key] = tuple((self._slot_part(name, slot), self._spares[slot, name]) for name in names)
        return self._copies[key]

    def _slot_view(self, slots: Sequence[int]) -> Tensor:
        self._check_slots(slots)
        if self._named != list(slots):
            self._filled(self._slot_ids, slots)
            self._named = list(slots)
        return self.player.view(self._slot_ids, (len(slots),), "int32")

    def _filled(self, argument: Tensor, values: Sequence[int]) -> Tensor:
        """The part of an argument that holds `values`, after it was set to them."""
        view = self.player.view(argument, (len(values),), "int32")
        self.player.upload(view, np.asarray(values, np.int32))
        return view

    def _check_slots(self, slots: Sequence[int]) -> None:
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.slots for slot in slots):
            raise GeckoError(f"slots {list(slots)}: expected different ones of 0 to {self.slots - 1}")

    def _check_ids(self, tokens: Sequence[int], limit: int) -> None:
        try:
            ids = np.asarray(tokens)
        except ValueError:  # Lists in it, of several lengths.
            ids = np.array(None)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise GeckoError("token ids must be a flat list of integers")
        if ids.min() < 0 or ids.max() >= limit:
            wrong = ids[(ids < 0) | (ids >= limit)][0]
            raise GeckoError(f"token id {wrong} is outside the vocabulary of {limit}")

    def _result(self, *shape: int) -> Tensor:
        (tensor,) = self.player.allocate([TensorSpec(name="result", shape=shape, dtype="float32")])
        return tensor

    def _slot_part(self, name: str, slot: int) -> Tensor:
        self._check_slots([slot])
        spec = self._specs[name]
        return self.player.view(self._state[name], spec.shape, spec.dtype, slot * nbytes(spec))
