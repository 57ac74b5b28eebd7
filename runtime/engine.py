"""The engine: a library, its parameters, and the recurrent state of its slots.

Positions live on the device. The host mirrors them by counting, to cut prompts at chunk boundaries and to
end chunks; a caller never sees the rule.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import PARAMETRIC_FUNCTIONS, StateTensor
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.runtime.generate.sampling import Sampling
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.players import tvm_runtime
from gecko_mlc.runtime.state.arena import Memory
from gecko_mlc.runtime.state.checkpoint import Checkpoint, Saved


class Engine:
    """Runs token ids through the slots of one library.

    `positions[slot]` is the number of tokens a slot has consumed. `parameters` are the tensors of the
    metadata's list, in its order. Raises `GeckoError` when the state does not fit into memory.
    """

    def __init__(self, library: Library, parameters: Sequence[Any]) -> None:
        self.metadata = library.metadata
        self._library, self._parameters, self._stream = library, list(parameters), library.stream
        # Of a GPU: the launches of calls that come again, by function and shapes.
        self._graphs: dict[tuple[Any, ...], Callable[[], None]] = {}
        self.device, self.slots = library.device, self.metadata.max_batch_size
        self.chunk_size: int = self.metadata.config["chunk_size"]
        self.vocab_size: int = self.metadata.config["vocab_size"]
        self.num_outputs: int = self._spec("logits").shape[0]
        self._tvm = tvm_runtime.load()
        try:
            whole = [s.model_copy(update={"shape": (self.slots, *s.shape)}) for s in self.metadata.state]
            memory = Memory(self.device, whole)
            self._state = {spec.name: memory.empty(spec.shape, spec.dtype) for spec in whole}
        except Exception as error:
            raise GeckoError(
                f"the state of {self.slots} slots takes {self.state_bytes():,} bytes,"
                f" which this machine could not give: {error}"
            ) from None
        # Arguments keep their addresses: a captured graph replays those it was captured with.
        self.lock, self.asynchronous = threading.RLock(), self._stream is not None
        self._slot_ids = self._empty((max(self.slots, 2),), "int32")
        self._named: list[int] = []  # What `_slot_ids` holds.
        self._tokens = self._empty((self.metadata.prefill_chunk_size,), "int32")
        self._targets = self._empty((self.metadata.prefill_chunk_size,), "int32")
        self.positions = [0] * self.slots
        self._checkpoints: dict[int, Checkpoint] = {}
        for slot in range(self.slots):
            self.reset(slot)

    def state_bytes(self) -> int:
        """Bytes of the state of all slots."""
        return self.slots * sum(tensor_bytes(spec) for spec in self.metadata.state)

    # Tokens in

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

    def extend_logits(
        self,
        slot: int,
        tokens: Sequence[int],
        on_piece: Callable[[str, int], None] = lambda function, count: None,
    ) -> np.ndarray:
        """Consume `tokens`; the fp32 logits [n, O] of all of them."""
        result = []
        for piece in self._pieces(slot, tokens):
            if len(piece) == 1:
                self.set_token(slot, piece[0])
                self.decode([slot])
                on_piece("decode", 1)
                result.append(self.logits(slot)[None])
            else:
                logits = self._empty((len(piece), self.num_outputs), "float32")
                self._prefill("prefill_logits", slot, piece, logits)
                on_piece("prefill_logits", len(piece))
                result.append(logits.numpy())
        return np.concatenate(result)

    def score(self, slot: int, tokens: Sequence[int], targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Consume `tokens`; log-probabilities [n] of the tokens `targets` that follow each of them, and
        the entropies [n] of the distributions, in nats."""
        if not len(tokens):
            raise GeckoError("no tokens: expected at least one")
        if len(targets) != len(tokens):
            raise GeckoError(f"{len(tokens)} tokens but {len(targets)} targets")
        self._check_ids(targets, self.num_outputs)
        results, done = [], 0
        for piece in self._pieces(slot, tokens):
            n = len(piece)
            view = self._targets._create_view((n,))
            view.copyfrom(np.asarray(targets[done : done + n], np.int32))
            outputs = [self._empty((n,), "float32") for _ in range(2)]
            self._prefill("score", slot, piece, view, *outputs)
            results.append([output.numpy() for output in outputs])
            done += n
        log_probabilities, entropies = zip(*results, strict=True)
        return np.concatenate(log_probabilities), np.concatenate(entropies)

    def decode(self, slots: Sequence[int]) -> None:
        """Consume the current token of each slot; one step of all of them."""
        self._step(slots, "decode")

    def burst(self, slots: Sequence[int], count: int) -> None:
        """Consume the current token of each slot and draw the next one, `count` times.

        A GPU's host does not wait for any of it: `recent` in the state has the last tokens drawn.
        """
        for _ in range(count):
            self._step(slots, "decode", "sample")

    def ends_tile(self, position: int) -> bool:
        """Whether much of the state changes when the token at `position` is consumed: a tile or a chunk ends."""
        offset = position % self.chunk_size + 1
        return offset == self.chunk_size or offset % (self.metadata.absorb_tile or self.chunk_size) == 0

    def synchronize(self) -> None:
        """Wait until the device has done everything it was told. Raises `GeckoError` if any of it failed."""
        if self._stream is not None:
            self._stream.synchronize()

    # Tokens out

    def sample(self, slots: Sequence[int]) -> None:
        """Draw the next current token of each slot from its logits."""
        self._call_again(["sample"], self._slot_view(slots))

    def set_sampling(self, slot: int, sampling: Sampling, seed: int) -> None:
        """How `sample` draws in `slot` from now on; forgets the tokens counted for penalties."""
        self.write("sampling", slot, np.array(sampling.row(), np.float32))
        words = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, 0], np.uint32)
        self.write("random", slot, words.view(np.int32))
        self.write("counts", slot, np.zeros(self._spec("counts").shape, np.int32))

    def set_token(self, slot: int, token: int) -> None:
        """Make `token` the current one, which `decode` consumes."""
        self._check_ids([token], self.vocab_size)
        self.write("token", slot, np.array(token, np.int32))

    def fetch_tokens(self, slots: Sequence[int]) -> Callable[[], list[int]]:
        """A function that waits for the tokens drawn last, whatever is drawn after them."""
        tokens = [self.token(slot) for slot in slots]
        return lambda: tokens

    def token(self, slot: int) -> int:
        """The current token."""
        return int(self.read("token", slot))

    def logits(self, slot: int) -> np.ndarray:
        """The fp32 logits [O] after the last token consumed."""
        return self.read("logits", slot)

    # Slots

    def reset(self, slot: int) -> None:
        """The state before the first token."""
        self._call("reset_slot", self._slot_view([slot]))
        self.positions[slot] = 0

    def copy(self, source: int, destination: int) -> None:
        """Make `destination` continue as `source` does."""
        self._call("copy_slot", self._slot_view([source, destination]))
        self.positions[destination] = self.positions[source]

    def read(self, name: str, slot: int) -> np.ndarray:
        """One slot's part of the state tensor `name`."""
        value: np.ndarray = self._slot_part(name, slot).numpy()
        return value.reshape(self._spec(name).shape)

    def write(self, name: str, slot: int, value: np.ndarray) -> None:
        """Replace one slot's part of the state tensor `name`."""
        part = self._slot_part(name, slot)
        part.copyfrom(value.reshape(part.shape))

    # States kept and put back

    def save(self, slot: int) -> Saved:
        """All of a slot's state, in the host's memory, with its checkpoint."""
        tensors = {spec.name: self.read(spec.name, slot) for spec in self.metadata.state}
        return Saved(self.positions[slot], tensors, self._checkpoints.pop(slot, None))

    def load(self, slot: int, saved: Saved) -> None:
        """Continue in `slot` as what was saved would."""
        for name, value in saved.tensors.items():
            self.write(name, slot, value)
        self.positions[slot] = saved.position
        if saved.checkpoint is not None:
            self._checkpoints[slot] = saved.checkpoint

    def checkpoint(self, slot: int) -> Checkpoint:
        """The slot's state, to go back to; in place of its checkpoint before."""
        self._checkpoints[slot] = Checkpoint(self.positions[slot])
        return self._checkpoints[slot]

    def restore(self, slot: int, checkpoint: Checkpoint) -> None:
        """Back to the slot's checkpoint."""
        for name, value in checkpoint.kept.items():
            part = self._slot_part(name, slot)
            part.copyfrom(value if not isinstance(value, np.ndarray) else value.reshape(part.shape))
        self.positions[slot] = checkpoint.position

    def release(self, slot: int) -> None:
        """The slot's checkpoint is not needed any more."""
        self._checkpoints.pop(slot, None)

    def set_draws(self, slot: int, seed: int, tokens: Sequence[int]) -> None:
        """The generator, counts and recent tokens as they are when `tokens` were drawn since `set_sampling`."""
        words = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, len(tokens)], np.uint32)
        self.write("random", slot, words.view(np.int32))
        counts = np.bincount(np.asarray(tokens, np.int64), minlength=self.num_outputs)
        self.write("counts", slot, counts.astype(np.int32))
        recent = np.zeros(self._spec("recent").shape, np.int32)
        for place in range(max(len(tokens) - len(recent), 0), len(tokens)):
            recent[place % len(recent)] = tokens[place]
        self.write("recent", slot, recent)
        self.write("token", slot, np.array(tokens[-1] if tokens else 0, np.int32))

    # The rest is private.

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

    def _prefill(self, function: str, slot: int, piece: Sequence[int], *inputs: Any) -> None:
        self._keep_changing(function, [slot])
        view = self._tokens._create_view((len(piece),))
        view.copyfrom(np.asarray(piece, np.int32))
        whole = function == "prefill" and len(piece) == self.metadata.prefill_chunk_size
        if whole:
            self._call_again([function], view, *inputs, self._slot_view([slot]))
        else:
            self._call(function, view, *inputs, self._slot_view([slot]))
        self._advance([slot], len(piece))

    def _advance(self, slots: Sequence[int], count: int) -> None:
        for slot in slots:
            self.positions[slot] += count
        complete = [slot for slot in slots if self.positions[slot] % self.chunk_size == 0]
        if complete:
            self._keep_changing("end_chunk", complete)
            self._call_again(["end_chunk"], self._slot_view(complete))

    def _step(self, slots: Sequence[int], *functions: str) -> None:
        """`decode`, and what follows it, for each slot."""
        view = self._slot_view(slots)
        if any(self._completes_tile(slot) for slot in slots):
            self._keep_changing("absorb", slots)
            self._call_again(["absorb"], view)
        self._keep_changing("decode", slots)
        self._call_again(functions, view)
        self._advance(slots, 1)

    def _completes_tile(self, slot: int) -> bool:
        """Whether a GPU is to absorb the previous chunk's tile when the slot's next token is decoded."""
        chunk, offset = divmod(self.positions[slot], self.chunk_size)
        tile = self.metadata.absorb_tile
        return tile is not None and chunk > 0 and ((offset + 1) % tile == 0 or offset + 1 == self.chunk_size)

    def _call_again(self, functions: Sequence[str], *inputs: Any) -> None:
        """Calls, one after the other, whose inputs have the same addresses each time: on a GPU one graph, from the
        second time on."""
        key = (*functions, *(tuple(tensor.shape) for tensor in inputs))
        if key in self._graphs:
            self._graphs[key]()
            return

        def launch() -> None:
            for function in functions:
                self._launch(function, *inputs)

        self._run(launch)
        if self._stream is not None:
            self._graphs[key] = self._stream.record(launch)

    def _call(self, function: str, *inputs: Any) -> None:
        self._run(lambda: self._launch(function, *inputs))

    def _keep_changing(self, function: str, slots: Sequence[int]) -> None:
        """For the checkpoints of slots: what `function` is about to change."""
        for slot in slots:
            if (checkpoint := self._checkpoints.get(slot)) is not None:
                checkpoint.before(function, self.metadata.state, functools.partial(self._copy_of, slot))

    def _copy_of(self, slot: int, spec: StateTensor) -> Any:
        # On the device what every token changes: the host would wait for it.
        if "decode" not in spec.changed_by:
            return self.read(spec.name, slot)
        part = self._slot_part(spec.name, slot)
        return part.copyto(self._empty(tuple(part.shape), spec.dtype))

    def _run(self, launch: Callable[[], None]) -> None:
        if self._stream is None:
            launch()
        else:
            self._stream.run(launch)

    def _launch(self, function: str, *inputs: Any) -> None:
        parameters = self._parameters if function in PARAMETRIC_FUNCTIONS else []
        self._library.functions[function](*inputs, *self._state.values(), *parameters)

    def _slot_view(self, slots: Sequence[int]) -> Any:
        self._check_slots(slots)
        view = self._slot_ids._create_view((len(slots),))
        if self._named != list(slots):
            view.copyfrom(np.asarray(slots, np.int32))
            self._named = list(slots)
        return view

    def _check_slots(self, slots: Sequence[int]) -> None:
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.slots for slot in slots):
            raise GeckoError(f"slots {list(slots)}: expected different ones of 0 to {self.slots - 1}")

    def _check_ids(self, tokens: Sequence[int], limit: int) -> None:
        ids = np.asarray(tokens)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise GeckoError("token ids must be a flat list of integers")
        if ids.min() < 0 or ids.max() >= limit:
            wrong = ids[(ids < 0) | (ids >= limit)][0]
            raise GeckoError(f"token id {wrong} is outside the vocabulary of {limit}")

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._tvm.runtime.empty(shape, dtype, self.device)

    def _spec(self, name: str) -> StateTensor:
        return next(spec for spec in self.metadata.state if spec.name == name)

    def _slot_part(self, name: str, slot: int) -> Any:
        self._check_slots([slot])
        spec = self._spec(name)
        # A view of a scalar keeps one axis.
        shape = spec.shape or (1,)
        return self._state[name]._create_view(shape, spec.dtype, slot * tensor_bytes(spec))


def tensor_bytes(spec: StateTensor) -> int:
    """Bytes of one slot of a state tensor."""
    return int(np.prod(spec.shape, dtype=np.int64)) * int(NUMPY_DTYPES[spec.dtype].itemsize)
