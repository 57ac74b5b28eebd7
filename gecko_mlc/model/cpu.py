"""Gecko as launches of the CPU's kernels, in the order of the equations."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.relax.frontend.nn import Module, Tensor, op

from gecko_mlc.model.family import Family, present
from gecko_mlc.model.parameters import Block, Mega, Norm, NormalizedFFN, RotaryTables
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


class CPULaunches(Family):
    """The parts of a function, each a method that launches its kernels."""

    slots = slots

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        assert isinstance(build.machine, CPU)
        self.machine = build.machine

    def embed(self, call: Call, tokens: Tensor | None, table: Matrix) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""
        c = self.build.config
        if tokens is None:
            kernel = embedding.current_tokens(self.build.slots)
            arguments = [call.state["token"], call.slots]
            tokens = launch(kernel, "current_tokens", arguments, fresh(call.n, dtype="int32"))
        kernel = embedding.take(table.outputs, table.inputs, self.embedding_scale, table.format)
        return launch(kernel, "embedding", [tokens, table.weight], fresh(call.n, c.model_dim))

    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block."""
        return self._ffn(block.nffn, self._mega(call, block.prefix, block.mega, rope, x), x)

    def store_logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix) -> None:
        """The logits of each sequence's last row, into the state."""
        c = self.build.config
        x = self._timestep_norm(call, "final_", norm, x)
        if call.phase is Phase.PREFILL:
            x = launch(embedding.last_row(c.model_dim), "last_row", [x], fresh(1, c.model_dim))
        kernel = embedding.store_logits(c.num_outputs, self.build.slots, self.machine)
        call.state.update(
            kernel, "store_logits", [self._product(x, self._pack(x), head), call.slots, "logits"], ["logits"]
        )

    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] of all rows."""
        x = self._timestep_norm(call, "final_", norm, x)
        return self._product(x, self._pack(x), head, into=into)

    def end_chunk(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """A layer's working-memory write (2.7)."""
        c, b = self.build.config, slot_ids.shape[0]
        dtypes, dz = self.build.quantization, c.head_dim
        keys, memory, log_norm = (f"{prefix}{name}" for name in ("memory_keys", "memory", "log_norm"))
        kappa, shares, rho = state.update(
            working_memory.write_weights(c.z_dim, c.num_heads, self.build.slots, c.chunk_size, dtypes.key_dtype),
            "working_memory_weights",
            [slot_ids, "position", keys, log_norm],
            [log_norm],
            [
                fresh(b, c.num_heads, c.chunk_size, dz),
                fresh(b, c.num_heads, c.chunk_size, dz),
                fresh(b, c.num_heads, dz),
            ],
        )
        state.update(
            working_memory.write(
                c.z_dim,
                c.value_dim,
                c.num_heads,
                self.build.slots,
                c.chunk_size,
                dtypes.state_dtype,
                self.machine,
            ),
            "working_memory_write",
            [kappa, shares, rho, slot_ids, "position", *self.values(prefix), memory],
            [memory],
        )

    def score_kernel(self) -> tirx.PrimFunc:
        """Kernel (logits [n, O], targets [n]) → log-probabilities [n], entropies [n]."""
        return sampling.score(self.build.config.num_outputs, self.machine)

    def sample_kernel(self, b: int) -> tuple[tirx.PrimFunc, list[Tensor]]:
        """The kernel that draws a token for each of b slots, with scores and weights [b, O] as scratch."""
        c = self.build.config
        kernel = sampling.sample(c.num_outputs, min(c.num_outputs, c.vocab_size), self.build.slots, self.machine)
        return kernel, [fresh(b, c.num_outputs), fresh(b, c.num_outputs)]

    # The rest is private.

    def _mega(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, x: Tensor) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [n, D]."""
        c, total = self.build.config, self.build.slots
        u = self._timestep_norm(call, prefix, mega.timenorm, x)
        v = self._linear(mega.wv, u, self._pack(u), activation="silu")
        (ema,) = call.state.update(
            complex_ema.complex_ema(call.phase, c.model_dim, c.cema_ndim, total, self.machine),
            "complex_ema",
            [u, mega.cema.coefficients, call.slots, f"{prefix}ema"],
            [f"{prefix}ema"],
            [fresh(call.n, c.model_dim)],
        )
        kernel = group_norm.rms_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.machine)
        mx = launch(kernel, "rms_norm", [ema, *present(mega.rmsnorm.weight)], fresh(*ema.shape))
        packed = self._pack(mx)
        z = self._linear(mega.wz, mx, packed)
        r = self._linear(mega.wr, mx, packed, activation="silu")
        h1 = self._linear(mega.wh1, mx, packed)

        dtypes, values = self.build.quantization, self.values(prefix)
        keys, memory_keys, memory = (f"{prefix}{name}" for name in ("keys", "memory_keys", "memory"))
        queries, weights = call.state.update(
            attention_inputs.attention_inputs(
                call.phase,
                c.z_dim,
                c.value_dim,
                c.num_heads,
                c.rope_heads,
                total,
                c.chunk_size,
                c.norm_eps,
                dtypes.key_dtype,
                dtypes.state_dtype,
                self.machine,
            ),
            "attention_inputs",
            [
                z,
                v,
                mega.gamma,
                mega.beta,
                rope.cos,
                rope.sin,
                call.slots,
                "position",
                keys,
                *values,
                memory_keys,
            ],
            [keys, *values, memory_keys],
            [fresh(call.n, 2, c.z_dim), fresh(call.n, c.z_dim)],
        )
        sca = self._attend(call, queries, [call.state[name] for name in (keys, *values)])
        merged = launch(
            working_memory.read(call.phase, c.z_dim, c.value_dim, c.num_heads, total, self.machine),
            "working_memory_read",
            [weights, sca, r, call.slots, call.state["position"], call.state[memory]],
            fresh(call.n, c.value_dim),
        )
        return self._linear(mega.wh2, merged, self._pack(merged), "residual2", [x, h1])

    def _attend(self, call: Call, queries: Tensor, window: list[Tensor]) -> Tensor:
        """sca [n, E] (2.6), with the keys and values of the `window`."""
        c, dtypes = self.build.config, self.build.quantization
        shapes = (
            c.z_dim,
            c.value_dim,
            c.num_heads,
            self.build.slots,
            c.chunk_size,
            dtypes.key_dtype,
            dtypes.state_dtype,
            self.machine,
        )
        arguments = [queries, call.slots, call.state["position"], *window]
        out = fresh(call.n, c.value_dim)
        if call.phase is Phase.PREFILL:
            return launch(chunk_attention.prefill(*shapes), "attention", arguments, out)
        tiles = chunk_attention.decode_tiles(c.chunk_size)
        partial = op.tensor_ir_op(
            chunk_attention.decode(*shapes),
            "attention_tiles",
            arguments,
            [
                fresh(call.n, c.num_heads, tiles, c.value_head_dim),
                fresh(call.n, c.num_heads, tiles, 2),
            ],
        )
        kernel = chunk_attention.combine(c.value_dim, c.num_heads, c.chunk_size, self.machine)
        return launch(kernel, "attention_combine", list(partial), out)

    def _ffn(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [n, D] of y, its middle, and x, its input."""
        c = self.build.config
        kernel = group_norm.layer_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.machine)
        weights = present(ffn.norm.weight, ffn.norm.bias)
        u = launch(kernel, "layer_norm", [y, *weights], fresh(*y.shape))
        packed = self._pack(u)
        hidden = self._linear(ffn.fc1, u, packed, activation="silu")
        if ffn.fc3 is not None:
            hidden = self._linear(ffn.fc3, u, packed, "gate", [hidden])
        residual = x if c.two_hop_residual else y
        packed = self._pack(hidden)
        if ffn.alpha is not None:
            return self._linear(ffn.fc2, hidden, packed, "scale_residual", [ffn.alpha, residual])
        return self._linear(ffn.fc2, hidden, packed, "residual", [residual])

    def _timestep_norm(self, call: Call, prefix: str, norm: Norm, x: Tensor) -> Tensor:
        """y [n, D] of x [n, D] (2.2); the moments are the state `<prefix>norm_mean`, `<prefix>norm_var`."""
        c = self.build.config
        kernel = timestep_norm.timestep_norm(
            call.phase,
            c.model_dim,
            c.timenorm_num_groups,
            self.build.slots,
            c.chunk_size,
            (c.timenorm_beta1, c.timenorm_beta2),
            c.norm_eps,
            self.machine,
        )
        moments = [f"{prefix}norm_mean", f"{prefix}norm_var"]
        arguments = [x, norm.weight, norm.bias, call.slots, "position", *moments]
        (y,) = call.state.update(kernel, "timestep_norm", arguments, moments, [fresh(call.n, c.model_dim)])
        return y

    def _pack(self, x: Tensor) -> Tensor:
        """x [n, K] as products read it, shared by all of them."""
        n, features = x.shape
        weights = self.build.weight_format
        shape = linear.packed_shape(n, int(features), weights, self.machine)
        kernel = linear.pack_rows(int(features), weights, self.machine)
        return launch(kernel, "pack_rows", [x], fresh(*shape, dtype=linear.packed_dtype(weights)))

    def _linear(
        self,
        layer: Module,
        x: Tensor,
        packed: Tensor,
        epilogue: str = "plain",
        operands: Sequence[Tensor] = (),
        activation: str | None = None,
    ) -> Tensor:
        """The product of x [n, in]; a bias is an epilogue of its own."""
        if layer.bias is not None:
            epilogue, operands = "bias", [layer.bias]
        return self._product(x, packed, matrix(layer), epilogue, operands, activation)

    def _product(
        self,
        x: Tensor,
        packed: Tensor,
        weights: Matrix,
        epilogue: str = "plain",
        operands: Sequence[Tensor] = (),
        activation: str | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        """x [n, in] times weights [out, in], with an epilogue of `tir_kernels.linear`; packed is `_pack(x)`.

        The result is fresh, or written to `into`.
        """
        kernel = linear.linear(weights.inputs, weights.outputs, weights.format, self.machine, epilogue, activation)
        arguments = [x, packed, weights.weight, *operands]
        if into is not None:
            return op.tensor_ir_inplace_op(kernel, "linear", [*arguments, into], [len(arguments)], into)
        return launch(kernel, "linear", arguments, fresh(x.shape[0], weights.outputs))
