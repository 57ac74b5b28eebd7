"""The functions of a library; `gecko_mlc.formats.library` lists their arguments."""

from __future__ import annotations

import math

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from gecko_mlc.model.parameters import Block, Output, RotaryTables
from gecko_mlc.model.quantize import Matrix, matrix
from gecko_mlc.model.trace import Build, Call, State
from gecko_mlc.state import state_tensors
from gecko_mlc.tir_kernels.phase import Phase


class Gecko(nn.Module):
    """The parameters, and a method for each function."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.specs = tuple(state_tensors(build.config, build.quantization, build.hardware))
        self.launches = build.launches(build)
        c = build.config
        self.embed = nn.Embedding(c.vocab_size, c.model_dim, build.quantization.model_dtype)
        self.rope = RotaryTables(build.config)
        self.layers = nn.ModuleList([Block(build, i) for i in range(c.num_layers)])
        self.output = Output(build)

    def prefill(self, tokens: Tensor, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """Tokens of one slot that stay within a chunk; logits of the last one into the state."""
        call = Call(Phase.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        self.launches.store_logits(call, self.output.final_norm, self._trunk(call, tokens), self._head())
        return self._advanced(call, tokens)

    def prefill_logits(self, tokens: Tensor, result: Tensor, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The same, with the logits [n, O] of all tokens as the result."""
        call = Call(Phase.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        logits = self.launches.logits(
            call, self.output.final_norm, self._trunk(call, tokens), self._head(), into=result
        )
        return [logits, *self._advanced(call, tokens)]

    def score(
        self,
        tokens: Tensor,
        targets: Tensor,
        log_probabilities: Tensor,
        entropies: Tensor,
        slot_ids: Tensor,
        *state: Tensor,
    ) -> list[Tensor]:
        """The same, with log-probabilities [n] of the targets and entropies [n] as results."""
        call = Call(Phase.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        logits = self.launches.logits(call, self.output.final_norm, self._trunk(call, tokens), self._head())
        results = self.launches.score(logits, targets, log_probabilities, entropies)
        return [*results, *self._advanced(call, tokens)]

    def decode(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The state's token of each slot; logits into the state."""
        call = Call(Phase.DECODE, slot_ids.shape[0], slot_ids, State(self.specs, state))
        self.launches.store_logits(call, self.output.final_norm, self._trunk(call, None), self._head())
        return self._advanced(call, slot_ids)

    def absorb(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """What tokens that complete a tile add for the memory, of each slot; before they are decoded."""
        states = State(self.specs, state)
        for layer in self.layers:
            self.launches.absorb(slot_ids, states, layer.prefix)
        return states.aliases()

    def end_chunk(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The memory write of slots whose chunk is complete; on to the next chunk."""
        states = State(self.specs, state)
        for layer in self.layers:
            self.launches.end_chunk(slot_ids, states, layer.prefix)
        self.launches.next_chunk(slot_ids, states)
        return states.aliases()

    def sample(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """A token for each slot, from its logits and sampling parameters."""
        states = State(self.specs, state)
        self.launches.sample(slot_ids, states)
        return states.aliases()

    def reset_slot(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The initial state, in each of the slots."""
        states = State(self.specs, state)
        for spec in self.specs:
            value = -math.inf if spec.initial == "minus_infinity" else 0.0
            self.launches.fill(slot_ids, states, spec.name, spec.shape, spec.dtype, value)
        return states.aliases()

    def copy_slot(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """All of the first slot's state into the second slot."""
        states = State(self.specs, state)
        for spec in self.specs:
            self.launches.copy(slot_ids, states, spec.name, spec.shape, spec.dtype)
        return states.aliases()

    def _trunk(self, call: Call, tokens: Tensor | None) -> Tensor:
        """The output [n, D] of the last block."""
        x = self.launches.embed(call, tokens, matrix(self.embed))
        for layer in self.layers:
            x = self.launches.block(call, layer, self.rope, x)
        return x

    def _head(self) -> Matrix:
        """The head's weight [O, D]."""
        return matrix(self.embed if self.build.config.share_emb else self.output.output)

    def _advanced(self, call: Call, tokens: Tensor) -> list[Tensor]:
        """All aliases, after the position has moved on; the last launch of a function that reads tokens."""
        self.launches.advance(call, tokens)
        return call.state.aliases()
