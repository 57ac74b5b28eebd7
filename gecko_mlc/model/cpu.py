"""Gecko as launches of the CPU's kernels, in the order of the specification's equations."""

from __future__ import annotations

from typing import NamedTuple, cast

from tvm import tirx
from tvm.relax.frontend.nn import Module, Tensor, op

from gecko_mlc.model.family import Family, present
from gecko_mlc.model.parameters import Block, ComplexEMA, Mega, Norm, NormalizedFFN, RotaryTables
from gecko_mlc.model.quantize import Matrix, matrix
from gecko_mlc.model.trace import Build, Call, State, fresh, launch
from gecko_mlc.tir_kernels.cpu import (
    attention_inputs,
    chunk_attention,
    complex_ema,
    embedding,
    group_norm,
    linear,
    sampling,
    slots,
    timestep_norm,
    working_memory,
)
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.phase import Phase


class Rows(NamedTuple):
    """Activations x [n, K], and the same as products read them, made once for all products."""

    x: Tensor
    packed: Tensor


class CPULaunches(Family):
    """The parts of a function, each a method that launches its kernels."""

    slots = slots

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.hardware = cast("CPU", build.hardware)

    def embed(self, call: Call, tokens: Tensor | None, table: Matrix) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""
        if tokens is None:
            kernel = embedding.current_tokens(self.build.slots)
            tokens = launch(kernel, "current_tokens", [call.state["token"], call.slots], fresh(call.n, dtype="int32"))
        kernel = embedding.take(table.outputs, table.inputs, self.embedding_scale, table.format)
        return launch(kernel, "embedding", [tokens, table.weight], fresh(call.n, table.inputs))

    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block (2.2 to 2.8)."""
        return self._ffn(block.nffn, self._mega(call, block.prefix, block.mega, rope, x), x)

    def store_logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix) -> None:
        """The logits (2.8) of each sequence's last row, into the state."""
        x = self._timestep_norm(call, "final_", norm, x)
        if call.phase is Phase.PREFILL:
            dim = self.build.config.model_dim
            x = launch(embedding.last_row(dim), "last_row", [x], fresh(1, dim))
        kernel = embedding.store_logits(head.outputs, self.build.slots, self.hardware)
        logits = self._product(head, self._rows(x))
        call.state.update(kernel, "store_logits", [logits, call.slots, "logits"], ["logits"])

    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] (2.8) of all rows; fresh, or written to `into`."""
        return self._product(head, self._rows(self._timestep_norm(call, "final_", norm, x)), into=into)

    def end_chunk(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """A layer's write of the working memory (2.7)."""
        window, b = self.window, slot_ids.shape[0]
        log_norm, memory = f"{prefix}log_norm", f"{prefix}memory"
        per_key = fresh(b, window.heads, window.chunk_size, window.head_dim)
        kappa, shares, rho = state.update(
            working_memory.write_weights(window),
            "working_memory_weights",
            [slot_ids, "position", f"{prefix}memory_keys", log_norm],
            [log_norm],
            [per_key, per_key, fresh(b, window.heads, window.head_dim)],
        )
        state.update(
            working_memory.write(window, self.hardware),
            "working_memory_write",
            [kappa, shares, rho, slot_ids, "position", *self.values(prefix), memory],
            [memory],
        )

    def score_kernel(self) -> tirx.PrimFunc:
        """Kernel (logits [n, O], targets [n]) → log-probabilities [n], entropies [n]."""
        return sampling.score(self.build.config.num_outputs, self.hardware)

    def sample_kernel(self, b: int) -> tuple[tirx.PrimFunc, list[Tensor]]:
        """The kernel that draws a token for each of b slots, with scores and weights [b, O] as scratch."""
        c = self.build.config
        kernel = sampling.sample(c.num_outputs, min(c.num_outputs, c.vocab_size), self.build.slots, self.hardware)
        return kernel, [fresh(b, c.num_outputs), fresh(b, c.num_outputs)]

    # The steps of a block.

    def _mega(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, x: Tensor) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [n, D]."""
        u = self._timestep_norm(call, prefix, mega.timenorm, x)
        v = self._linear(mega.wv, self._rows(u), activation="silu")
        mx = self._rows(self._rms_norm(mega.rmsnorm, self._complex_ema(call, prefix, mega.cema, u)))
        z = self._linear(mega.wz, mx)
        r = self._linear(mega.wr, mx, activation="silu")
        h = self._linear(mega.wh1, mx)
        queries, reads = self._attention_inputs(call, prefix, mega, rope, z, v)
        sca = self._attention(call, prefix, queries)
        merged = self._memory_read(call, prefix, reads, sca, r)
        return self._linear(mega.wh2, self._rows(merged), addend=x, second=h)

    def _ffn(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [n, D] (2.8) of y, its middle, and x, its input."""
        u = self._rows(self._layer_norm(ffn.norm, y))
        hidden = self._linear(ffn.fc1, u, activation="silu")
        if ffn.fc3 is not None:
            hidden = self._linear(ffn.fc3, u, gate=hidden)
        return self._linear(ffn.fc2, self._rows(hidden), scale=ffn.alpha, addend=self.residual(x, y))

    def _timestep_norm(self, call: Call, prefix: str, norm: Norm, x: Tensor) -> Tensor:
        """u [n, D] of x [n, D] (2.2)."""
        kernel = timestep_norm.timestep_norm(call.phase, self.timestep_norm, self.hardware)
        moments = self.moments(prefix)
        arguments = [x, norm.weight, norm.bias, call.slots, "position", *moments]
        return call.state.update(kernel, "timestep_norm", arguments, moments, [fresh(*x.shape)])[0]

    def _complex_ema(self, call: Call, prefix: str, cema: ComplexEMA, u: Tensor) -> Tensor:
        """u + ema [n, D] of u [n, D] (2.3)."""
        kernel, state = complex_ema.complex_ema(call.phase, self.ema, self.hardware), f"{prefix}ema"
        arguments = [u, cema.coefficients, call.slots, state]
        return call.state.update(kernel, "complex_ema", arguments, [state], [fresh(*u.shape)])[0]

    def _rms_norm(self, norm: Norm, x: Tensor) -> Tensor:
        """mx [n, D] of x [n, D] (2.4)."""
        kernel = group_norm.rms_norm(self.group_norm, self.hardware)
        return launch(kernel, "rms_norm", [x, *present(norm.weight)], fresh(*x.shape))

    def _layer_norm(self, norm: Norm, y: Tensor) -> Tensor:
        """u' [n, D] of y [n, D] (2.8)."""
        kernel = group_norm.layer_norm(self.group_norm, self.hardware)
        return launch(kernel, "layer_norm", [y, *present(norm.weight, norm.bias)], fresh(*y.shape))

    def _attention_inputs(
        self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, z: Tensor, v: Tensor
    ) -> list[Tensor]:
        """Queries [n, 2, Z], weights [n, Z] of the memory (2.4, 2.5); keys and values go to the caches."""
        caches = [f"{prefix}keys", *self.values(prefix), f"{prefix}memory_keys"]
        return call.state.update(
            attention_inputs.attention_inputs(call.phase, self.window, self.hardware),
            "attention_inputs",
            [z, v, mega.gamma, mega.beta, rope.cos, rope.sin, call.slots, "position", *caches],
            caches,
            [fresh(call.n, 2, self.window.z_dim), fresh(call.n, self.window.z_dim)],
        )

    def _attention(self, call: Call, prefix: str, queries: Tensor) -> Tensor:
        """sca [n, E] (2.6) of the queries [n, 2, Z] and the caches."""
        window = self.window
        caches = [call.state[name] for name in (f"{prefix}keys", *self.values(prefix))]
        arguments, sca = [queries, call.slots, call.state["position"], *caches], fresh(call.n, window.value_dim)
        if call.phase is Phase.PREFILL:
            return launch(chunk_attention.prefill(window, self.hardware), "attention", arguments, sca)
        tiles = chunk_attention.decode_tiles(window.chunk_size)
        partial = op.tensor_ir_op(
            chunk_attention.decode(window, self.hardware),
            "attention_tiles",
            arguments,
            [fresh(call.n, window.heads, tiles, window.value_head_dim), fresh(call.n, window.heads, tiles, 2)],
        )
        return launch(chunk_attention.combine(window, self.hardware), "attention_combine", list(partial), sca)

    def _memory_read(self, call: Call, prefix: str, reads: Tensor, sca: Tensor, r: Tensor) -> Tensor:
        """sca ⊙ r + awm [n, E] (2.7, 2.8)."""
        kernel = working_memory.read(call.phase, self.window, self.hardware)
        arguments = [reads, sca, r, call.slots, call.state["position"], call.state[f"{prefix}memory"]]
        return launch(kernel, "working_memory_read", arguments, fresh(*sca.shape))

    # Products.

    def _rows(self, x: Tensor) -> Rows:
        """x [n, K] for products."""
        (n, features), weights = x.shape, self.build.weight_format
        shape = linear.packed_shape(n, int(features), weights, self.hardware)
        kernel = linear.pack_rows(int(features), weights, self.hardware)
        return Rows(x, launch(kernel, "pack_rows", [x], fresh(*shape, dtype=linear.packed_dtype(weights))))

    def _linear(self, layer: Module, rows: Rows, activation: str | None = None, **operands: Tensor | None) -> Tensor:
        """The layer's output [n, out], with its activation and the operands of `cpu.linear` that are given."""
        return self._product(matrix(layer), rows, activation, bias=layer.bias, **operands)

    def _product(
        self,
        weights: Matrix,
        rows: Rows,
        activation: str | None = None,
        into: Tensor | None = None,
        **operands: Tensor | None,
    ) -> Tensor:
        """Rows [n, in] times weights [out, in], with the operands of `cpu.linear`; fresh, or written to `into`."""
        given = {name: operands[name] for name in linear.OPERANDS if operands.get(name) is not None}
        kernel = linear.linear(weights.inputs, weights.outputs, weights.format, self.hardware, activation, tuple(given))
        arguments = [*rows, weights.weight, *given.values()]
        if into is not None:
            return op.tensor_ir_inplace_op(kernel, "linear", [*arguments, into], [len(arguments)], into)
        return launch(kernel, "linear", arguments, fresh(rows.x.shape[0], weights.outputs))
