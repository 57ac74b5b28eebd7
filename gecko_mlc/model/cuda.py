"""Gecko as launches of the CUDA kernels.

Decode is seven kernels a layer, each started while its predecessor ends. In prefill, activations that feed the
tensor cores have the weights' dtype; what adds up over layers or time is fp32.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.relax.frontend.nn import Module, Tensor, op

from gecko_mlc.model.family import Family, present
from gecko_mlc.model.parameters import Block, Mega, Norm, NormalizedFFN, RotaryTables
from gecko_mlc.model.quantize import Matrix
from gecko_mlc.model.trace import Build, Call, State, fresh, launch, launch_all
from gecko_mlc.tir_kernels.cuda.decode import attention as decode_attention
from gecko_mlc.tir_kernels.cuda.decode import attention_merge, attention_window
from gecko_mlc.tir_kernels.cuda.decode import linear as decode_linear
from gecko_mlc.tir_kernels.cuda.decode import norm_ema as norm_ema_step
from gecko_mlc.tir_kernels.cuda.decode import timestep_norm as decode_timestep_norm
from gecko_mlc.tir_kernels.cuda.gemv import gemv
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.cuda.memory import working_memory
from gecko_mlc.tir_kernels.cuda.prefill import (
    attention_inputs,
    attention_scores,
    attention_values,
    group_norm,
    norm_ema,
    timestep_norm,
)
from gecko_mlc.tir_kernels.cuda.prefill import linear as prefill_linear
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, row_shape
from gecko_mlc.tir_kernels.cuda.state import embedding, sampling, score, slots, value_cache
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.phase import Phase


class CUDALaunches(Family):
    """The parts of a function, each a method that launches its kernels."""

    slots = slots

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        assert isinstance(build.machine, CUDA)
        self.machine = build.machine
        dtypes = build.quantization
        self.dtype, self.key_dtype, self.value_dtype = dtypes.model_dtype, dtypes.key_dtype, dtypes.state_dtype
        # Reads of the memory are rounded with the keys.
        self.memory = "memory" if self.key_dtype == "float32" else "memory_read"
        # What a decode multiplies.
        self.matrices = Matrices(build.weight_format, build.slots, build.machine)

    def embed(self, call: Call, tokens: Tensor | None, table: Matrix) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""
        shape, out = (table.outputs, table.inputs, self.embedding_scale, table.format), fresh(call.n, table.inputs)
        if tokens is None:
            kernel = embedding.take_current(*shape, self.build.slots)
            return launch(kernel, "embedding", [call.state["token"], call.slots, table.weight], out)
        return launch(embedding.take(*shape), "embedding", [tokens, table.weight], out)

    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block."""
        mega, ffn = (self._mega_step, self._ffn_step) if call.phase is Phase.DECODE else (self._mega, self._ffn)
        return ffn(block.nffn, mega(call, block.prefix, block.mega, rope, x), x)

    def store_logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix) -> None:
        """The logits (2.8) of each sequence's last row, into the state."""
        decoding = call.phase is Phase.DECODE
        (y,) = call.state.update(
            decode_timestep_norm.timestep_norm(self.timestep_norm)
            if decoding
            else timestep_norm.last_timestep_norm(*self._norm_shape()),
            "final_norm",
            [x, norm.weight, norm.bias, call.slots, "position", *self.moments("final_")],
            self.moments("final_"),
            [fresh(call.n if decoding else 1, head.inputs)],
        )
        matrices = Matrices(head.format, self.build.slots if decoding else 1, self.machine)
        kernel = decode_linear.head(head.inputs, head.outputs, self.build.slots, matrices)
        call.state.update(kernel, "head", [y, head.weight, call.slots, "logits"], ["logits"])

    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] of all rows."""
        c = self.build.config
        y = launch(
            timestep_norm.timestep_norm(c.model_dim, c.timenorm_num_groups, self.dtype),
            "timestep_norm",
            [x, norm.weight, norm.bias, self._moments(call, "final_", x)],
            fresh(call.n, c.model_dim, dtype=self.dtype),
        )
        kernel = prefill_linear.linear(c.model_dim, c.num_outputs, head.format, self.machine)
        if into is not None:
            return op.tensor_ir_inplace_op(kernel, "head", [y, head.weight, into], [2], into)
        return launch(kernel, "head", [y, head.weight], fresh(call.n, c.num_outputs))

    def absorb(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """What a token of each slot adds for a layer's memory (8c), if it completes a tile."""
        self._absorb(slot_ids, state, prefix, working_memory.absorb_step(*self._memory_shape()), [])

    def end_chunk(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """A layer takes the chunk that was spread over its tokens into its memory (2.7), and prepares the next."""
        c = self.build.config
        shape = (c.z_dim, c.value_dim, c.num_heads, self.build.slots)
        memory_sum, log_mass, log_sum = (f"{prefix}{name}" for name in ("memory_sum", "log_mass", "log_sum"))
        state.update(
            working_memory.update(*shape, self.key_dtype),
            "memory_update",
            [slot_ids, "position", f"{prefix}{self.memory}", memory_sum],
            [memory_sum],
        )
        rounded = [] if self.memory == "memory" else [f"{prefix}{self.memory}"]
        writes = [f"{prefix}log_norm", f"{prefix}memory", *rounded]
        state.update(
            working_memory.write(*shape, self.key_dtype),
            "memory_write",
            [slot_ids, "position", log_mass, memory_sum, *writes],
            writes,
        )
        state.update(
            working_memory.start_chunk(c.z_dim, c.num_heads, self.build.slots, c.chunk_size, self.key_dtype),
            "start_chunk",
            [slot_ids, "position", f"{prefix}memory_keys", log_mass, log_sum],
            [log_mass, log_sum],
        )

    def score_kernel(self) -> tirx.PrimFunc:
        """Kernel (logits [n, O], targets [n]) → log-probabilities [n], entropies [n]."""
        return score.score(self.build.config.num_outputs)

    def sample_kernel(self, b: int) -> tuple[tirx.PrimFunc, list[Tensor]]:
        """The kernel that draws a token for each of b slots; it needs no scratch."""
        c = self.build.config
        return sampling.sample(c.num_outputs, min(c.num_outputs, c.vocab_size), self.build.slots), []

    # Decode.

    def _mega_step(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, x: Tensor) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [b, D]."""
        u, mixed, quantized = self._norm_ema_step(call, prefix, mega, x)
        v, z, r, h = self._project_step(mega, u, mixed, quantized, x)
        return self._attend_step(call, prefix, mega, rope, v, z, r, h)

    def _norm_ema_step(
        self, call: Call, prefix: str, mega: Mega, x: Tensor
    ) -> tuple[Tensor, Tensor, QuantizedRow | None]:
        """The timestep norm u (2.2) of x [b, D] and its EMA c (2.3), and how both are quantized."""
        quantized = norm_ema_step.quantized_output(self.timestep_norm, self.group_norm.groups, self.matrices)
        # Whoever quantizes applies the gain of the RMS norm between the two kernels.
        gain = present(mega.rmsnorm.weight) if quantized else []
        state = [*self.moments(prefix), f"{prefix}ema"]
        u, mixed = call.state.update(
            norm_ema_step.norm_ema(self.timestep_norm, self.ema, quantized, bool(gain)),
            "norm_ema",
            [
                x,
                mega.timenorm.weight,
                mega.timenorm.bias,
                mega.cema.coefficients,
                call.slots,
                "position",
                *state,
                *gain,
            ],
            state,
            [_row(call.n, self.ema.dim, quantized), _row(call.n, self.ema.dim, quantized)],
        )
        return u, mixed, quantized

    def _project_step(
        self, mega: Mega, u: Tensor, mixed: Tensor, quantized: QuantizedRow | None, x: Tensor
    ) -> list[Tensor]:
        """v [b, E], z [b, Z], r [b, E] (2.4) and h = x + wh1 mx [b, D] (2.8)."""
        w, b, dim = self.window, x.shape[0], self.group_norm.dim
        gain = [] if quantized else present(mega.rmsnorm.weight)
        layers = [t for layer in (mega.wv, mega.wz, mega.wr, mega.wh1) for t in present(layer.weight, layer.bias)]
        return launch_all(
            decode_linear.projections(self.group_norm, w.z_dim, w.value_dim, self.matrices, quantized),
            "projections",
            [u, mixed, *gain, *layers, x],
            [fresh(b, w.value_dim), fresh(b, w.z_dim), fresh(b, w.value_dim), fresh(b, dim)],
        )

    def _attend_step(
        self,
        call: Call,
        prefix: str,
        mega: Mega,
        rope: RotaryTables,
        v: Tensor,
        z: Tensor,
        r: Tensor,
        h: Tensor,
    ) -> Tensor:
        """y = h + wh2 (sca ⊙ r + awm) [b, D], with sca of 2.6 and awm of 2.7."""
        w, state = self.window, call.state
        cache = [f"{prefix}keys", *self.values(prefix), f"{prefix}memory_keys"]
        parts = attention_window.parts(w.chunk_size, w.heads)
        partial, statistics = state.update(
            decode_attention.attend(w),
            "attend",
            [z, v, mega.gamma, mega.beta, rope.cos, rope.sin, call.slots, "position", *cache],
            cache,
            [fresh(call.n, w.heads, parts, w.value_head_dim), fresh(call.n, w.heads, parts, 2)],
        )
        quantized = attention_merge.quantized_output(w, self.matrices)
        memory = state[f"{prefix}{self.memory}"]
        merged = launch(
            attention_merge.merge(w, quantized),
            "merge",
            [z, mega.gamma, mega.beta, partial, statistics, r, call.slots, state["position"], memory],
            _row(call.n, w.value_dim, quantized),
        )
        kernel = decode_linear.linear_residual(w.value_dim, self.group_norm.dim, self.matrices, incoming=quantized)
        return launch(kernel, "linear_residual", [merged, mega.wh2.weight, h], fresh(call.n, self.group_norm.dim))

    def _ffn_step(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [b, D] of y, its middle, and x, its input (2.8)."""
        c, b = self.build.config, y.shape[0]
        quantized = gemv.quantized_output(c.ffn_hidden_dim, self.matrices, 2 if c.swiglu else 1)
        hidden = launch(
            decode_linear.gate(self.group_norm, c.ffn_hidden_dim, c.swiglu, self.matrices, quantized),
            "gate",
            [y, *present(ffn.norm.weight, ffn.norm.bias), *_matrices(ffn)],
            _row(b, c.ffn_hidden_dim, quantized),
        )
        kernel = decode_linear.linear_residual(
            c.ffn_hidden_dim, c.model_dim, self.matrices, ffn.alpha is not None, quantized
        )
        arguments = [hidden, ffn.fc2.weight, *present(ffn.alpha), self.residual(x, y)]
        return launch(kernel, "linear_residual", arguments, fresh(b, c.model_dim))

    # Prefill.

    def _mega(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, x: Tensor) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [n, D]."""
        c, n, total = self.build.config, call.n, self.build.slots
        u, mixed = call.state.update(
            norm_ema.norm_ema(c.model_dim, c.timenorm_num_groups, c.cema_ndim, total, self.dtype),
            "norm_ema",
            [
                x,
                mega.timenorm.weight,
                mega.timenorm.bias,
                mega.cema.coefficients,
                self._moments(call, prefix, x),
                call.slots,
                f"{prefix}ema",
            ],
            [f"{prefix}ema"],
            [fresh(n, c.model_dim, dtype=self.dtype), fresh(n, c.model_dim)],
        )
        keys, memory_keys = f"{prefix}keys", f"{prefix}memory_keys"
        self._store_values(call, prefix, mega.wv, u)
        mx = launch(
            group_norm.rms_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.dtype),
            "rms_norm",
            [mixed, *present(mega.rmsnorm.weight)],
            fresh(n, c.model_dim, dtype=self.dtype),
        )
        layers = (mega.wz, mega.wr, mega.wh1)
        z, r, h = launch_all(
            prefill_linear.projections(c.model_dim, c.z_dim, c.value_dim, self.build.weight_format, self.machine),
            "projections",
            [mx, *(tensor for layer in layers for tensor in present(layer.weight, layer.bias)), x],
            [fresh(n, c.z_dim), fresh(n, c.value_dim, dtype=self.dtype), fresh(n, c.model_dim)],
        )
        queries, reads = call.state.update(
            attention_inputs.attention_inputs(
                c.z_dim, c.num_heads, c.rope_heads, total, c.chunk_size, c.norm_eps, self.dtype, self.key_dtype
            ),
            "attention_inputs",
            [z, mega.gamma, mega.beta, rope.cos, rope.sin, call.slots, "position", keys, memory_keys],
            [keys, memory_keys],
            [fresh(n, 2, c.z_dim, dtype=self.dtype), fresh(n, c.z_dim, dtype=self.dtype)],
        )
        scores = (c.z_dim, c.num_heads, total, c.chunk_size, self.dtype, self.key_dtype, self.machine)
        seen = [queries, call.slots, call.state["position"], call.state[keys]]
        statistics = launch(
            attention_scores.attention_statistics(*scores),
            "attention_statistics",
            seen,
            fresh(c.num_heads, attention_scores.parts(c.chunk_size), n, 2),
        )
        weights = launch(
            attention_scores.attention_weights(*scores),
            "attention_weights",
            [*seen, statistics],
            fresh(c.num_heads, n, 2, attention_scores.padded(c.chunk_size), dtype=self.dtype),
        )
        merged = launch(
            attention_values.attention_values(
                c.z_dim,
                c.value_dim,
                c.num_heads,
                total,
                c.chunk_size,
                self.dtype,
                self.key_dtype,
                self.value_dtype,
                self.machine,
            ),
            "attention_values",
            [
                weights,
                call.slots,
                call.state["position"],
                *(call.state[name] for name in self._values(prefix)),
                r,
                reads,
                call.state[f"{prefix}{self.memory}"],
            ],
            fresh(n, c.value_dim, dtype=self.dtype),
        )
        kernel = working_memory.absorb(c.model_dim, *self._memory_shape())
        self._absorb(call.slots, call.state, prefix, kernel, [x])
        kernel = prefill_linear.linear_residual(c.value_dim, c.model_dim, self.build.weight_format, False, self.machine)
        return launch(kernel, "linear_residual", [merged, mega.wh2.weight, h], fresh(n, c.model_dim))

    def _store_values(self, call: Call, prefix: str, wv: Module, u: Tensor) -> None:
        """Values of u [n, D] (2.4), into the cache."""
        c, total = self.build.config, self.build.slots
        kernel = prefill_linear.value_projection(
            c.model_dim, c.value_dim, total, c.chunk_size, self.build.weight_format, self.value_dtype, self.machine
        )
        operands, values = [u, *present(wv.weight, wv.bias)], self._values(prefix)
        if self.value_dtype == "int8":
            v = launch(kernel, "value_projection", operands, fresh(call.n, c.value_dim, dtype=self.dtype))
            kernel = value_cache.quantize_values(c.value_dim, c.num_heads, total, c.chunk_size, self.dtype)
            call.state.update(kernel, "quantize_values", [v, call.slots, "position", *values], values)
        else:
            call.state.update(kernel, "value_projection", [*operands, call.slots, "position", *values], values)

    def _ffn(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [n, D] of y, its middle, and x, its input."""
        c, n = self.build.config, y.shape[0]
        u = launch(
            group_norm.layer_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.dtype),
            "layer_norm",
            [y, *present(ffn.norm.weight, ffn.norm.bias)],
            fresh(n, c.model_dim, dtype=self.dtype),
        )
        hidden = launch(
            prefill_linear.gate(c.model_dim, c.ffn_hidden_dim, c.swiglu, self.build.weight_format, self.machine),
            "gate",
            [u, *_matrices(ffn)],
            fresh(n, c.ffn_hidden_dim, dtype=self.dtype),
        )
        scaled = ffn.alpha is not None
        kernel = prefill_linear.linear_residual(
            c.ffn_hidden_dim, c.model_dim, self.build.weight_format, scaled, self.machine
        )
        residual = x if c.two_hop_residual else y
        arguments = [hidden, ffn.fc2.weight, *present(ffn.alpha), residual]
        return launch(kernel, "linear_residual", arguments, fresh(n, c.model_dim))

    def _moments(self, call: Call, prefix: str, x: Tensor) -> Tensor:
        """The moments [G, n, 2] that x [n, D] is normalized with (2.2)."""
        averages = [f"{prefix}norm_mean", f"{prefix}norm_var"]
        (moments,) = call.state.update(
            timestep_norm.timestep_norm_moments(*self._norm_shape()),
            "timestep_norm_moments",
            [x, call.slots, "position", *averages],
            averages,
            [fresh(self.build.config.timenorm_num_groups, call.n, 2)],
        )
        return moments

    # Both.

    def _absorb(self, slot_ids: Tensor, state: State, prefix: str, kernel: Any, rows: list[Tensor]) -> None:
        """What these tokens add for the memory (8c); `rows` [n, D] tell a prefill how many they are."""
        names = ["memory_keys", *self.build.value_tensors, "log_mass", "log_sum", "memory_sum"]
        arguments = [*rows, slot_ids, "position", *(f"{prefix}{name}" for name in names)]
        state.update(kernel, "absorb", arguments, [f"{prefix}memory_sum"])

    def _memory_shape(self) -> tuple[Any, ...]:
        c = self.build.config
        return (
            c.z_dim,
            c.value_dim,
            c.num_heads,
            self.build.slots,
            c.chunk_size,
            self.key_dtype,
            self.value_dtype,
        )

    def _values(self, prefix: str) -> list[str]:
        return [f"{prefix}{name}" for name in self.build.value_tensors]

    def _betas(self) -> tuple[float, float]:
        return self.build.config.timenorm_beta1, self.build.config.timenorm_beta2

    def _norm_shape(self) -> tuple[Any, ...]:
        c = self.build.config
        return c.model_dim, c.timenorm_num_groups, self.build.slots, c.chunk_size, self._betas(), c.norm_eps


def _matrices(ffn: NormalizedFFN) -> list[Tensor]:
    """The weights that share the FFN's input."""
    return [ffn.fc1.weight] if ffn.fc3 is None else [ffn.fc1.weight, ffn.fc3.weight]


def _row(count: Any, features: int, quantized: QuantizedRow | None) -> Tensor:
    """Rows of activations that a kernel makes."""
    width, dtype = row_shape(features, quantized)
    return fresh(count, width, dtype=dtype)
