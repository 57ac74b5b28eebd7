"""What the launches of all hardware have in common: the model's shapes, the names of its state, and equal launches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import ModuleType

from tvm import tirx
from tvm.relax.frontend.nn import Tensor, op

from gecko_mlc.model.parameters import Block, Norm, RotaryTables
from gecko_mlc.model.quantize import Matrix
from gecko_mlc.model.trace import Build, Call, State
from gecko_mlc.tir_kernels.shapes import EMA, GroupNorm, TimestepNorm, Window


class Family(ABC):
    """The parts of a function, each a method that launches its kernels."""

    # Kernels of the life of slots: advance, next_chunk, fill, copy.
    slots: ModuleType

    def __init__(self, build: Build) -> None:
        self.build = build
        c, dtypes, slots = build.config, build.quantization, build.slots
        betas = (c.timenorm_beta1, c.timenorm_beta2)
        self.timestep_norm = TimestepNorm(
            c.model_dim, c.timenorm_num_groups, slots, c.chunk_size, betas=betas, eps=c.norm_eps
        )
        self.group_norm = GroupNorm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine)
        self.ema = EMA(c.model_dim, c.cema_ndim, slots)
        self.window = Window(
            c.z_dim,
            c.value_dim,
            c.num_heads,
            c.rope_heads,
            c.chunk_size,
            slots,
            eps=c.norm_eps,
            key_dtype=dtypes.key_dtype,
            value_dtype=dtypes.state_dtype,
        )
        self.embedding_scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0

    @abstractmethod
    def embed(self, call: Call, tokens: Tensor | None, table: Matrix) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""

    @abstractmethod
    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block (2.2 to 2.8)."""

    @abstractmethod
    def store_logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix) -> None:
        """The logits (2.8) of each sequence's last row, into the state."""

    @abstractmethod
    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] (2.8) of all rows; fresh, or written to `into`."""

    @abstractmethod
    def end_chunk(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """A layer's write of the working memory (2.7)."""

    @abstractmethod
    def score_kernel(self) -> tirx.PrimFunc:
        """Kernel (logits [n, O], targets [n]) → log-probabilities [n], entropies [n]."""

    @abstractmethod
    def sample_kernel(self, b: int) -> tuple[tirx.PrimFunc, list[Tensor]]:
        """The kernel that draws a token for each of b slots, and the scratch it is given."""

    def score(self, logits: Tensor, targets: Tensor, log_probabilities: Tensor, entropies: Tensor) -> list[Tensor]:
        """Log-probabilities [n] of the targets and entropies [n], in place."""
        arguments, results = [logits, targets, log_probabilities, entropies], [log_probabilities, entropies]
        return list(op.tensor_ir_inplace_op(self.score_kernel(), "score", arguments, [2, 3], results))

    def sample(self, slot_ids: Tensor, state: State) -> None:
        """The next current token of each slot."""
        kernel, scratch = self.sample_kernel(slot_ids.shape[0])
        writes = ["random", "counts", "token", "recent"]
        state.update(kernel, "sample", [slot_ids, "logits", "sampling", *writes], writes, scratch)

    def advance(self, call: Call, tokens: Tensor) -> None:
        """The position moves on by the tokens [n]."""
        kernel = self.slots.advance(call.phase, self.build.slots)
        call.state.update(kernel, "advance", [tokens, call.slots, "position"], ["position"])

    def next_chunk(self, slot_ids: Tensor, state: State) -> None:
        """On to offset 0 of the next chunk."""
        state.update(self.slots.next_chunk(self.build.slots), "next_chunk", [slot_ids, "position"], ["position"])

    def fill(self, slot_ids: Tensor, state: State, name: str, shape: tuple[int, ...], dtype: str, value: float) -> None:
        """Every element of a state tensor, in the slots, becomes `value`."""
        state.update(self.slots.fill(self.build.slots, shape, dtype, value), "fill", [slot_ids, name], [name])

    def copy(self, slot_ids: Tensor, state: State, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """The first slot's part of a state tensor, into the second slot."""
        state.update(self.slots.copy(self.build.slots, shape, dtype), "copy", [slot_ids, name], [name])

    def moments(self, prefix: str) -> list[str]:
        """The state of a timestep norm (2.2)."""
        return [f"{prefix}norm_mean", f"{prefix}norm_var"]

    def values(self, prefix: str) -> list[str]:
        """The cache of a layer's values, as kernels take it: with scales or without."""
        return [f"{prefix}{name}" for name in self.build.value_tensors]

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """What the FFN's output is added to (2.8): y, its input, or x, the block's."""
        return x if self.build.config.two_hop_residual else y


def present(*parameters: Tensor | None) -> list[Tensor]:
    """Those of the parameters that the model has."""
    return [parameter for parameter in parameters if parameter is not None]
