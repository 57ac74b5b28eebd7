"""Gecko as launches of the CUDA kernels.

Decode is seven kernels a layer, each started while its predecessor ends. In prefill, activations that feed the
tensor cores have the weights' dtype; what adds up over layers or time is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
from gecko_mlc.tir_kernels.cuda.memory import absorb, start_chunk, update, write
from gecko_mlc.tir_kernels.cuda.prefill import (
    attention_inputs,
    attention_softmax,
    attention_values,
    group_norm,
    norm_ema,
    projections,
    scores,
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
        self.hardware = cast("CUDA", build.hardware)
        # Activations of a prefill.
        self.dtype = build.quantization.model_dtype
        # Reads of the memory are rounded with the keys.
        self.memory = "memory" if self.window.key_dtype == "float32" else "memory_read"
        # What a decode multiplies.
        self.matrices = Matrices(build.weight_format, build.slots, self.hardware)

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
            else timestep_norm.last_timestep_norm(self.timestep_norm),
            "final_norm",
            [x, norm.weight, norm.bias, call.slots, "position", *self.moments("final_")],
            self.moments("final_"),
            [fresh(call.n if decoding else 1, head.inputs)],
        )
        matrices = Matrices(head.format, self.build.slots if decoding else 1, self.hardware)
        kernel = decode_linear.head(head.inputs, head.outputs, self.build.slots, matrices)
        call.state.update(kernel, "head", [y, head.weight, call.slots, "logits"], ["logits"])

    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] of all rows."""
        y = launch(
            timestep_norm.timestep_norm(self.timestep_norm, self.dtype),
            "timestep_norm",
            [x, norm.weight, norm.bias, self._moments(call, "final_", x)],
            fresh(call.n, head.inputs, dtype=self.dtype),
        )
        kernel = prefill_linear.linear(head.inputs, head.outputs, head.format, self.hardware)
        if into is not None:
            return op.tensor_ir_inplace_op(kernel, "head", [y, head.weight, into], [2], into)
        return launch(kernel, "head", [y, head.weight], fresh(call.n, head.outputs))

    def absorb(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """What a token of each slot adds for a layer's memory (8c), if it completes a tile."""
        self._absorb(Phase.DECODE, slot_ids, state, prefix, [])

    def end_chunk(self, slot_ids: Tensor, state: State, prefix: str) -> None:
        """A layer takes the chunk that was spread over its tokens into its memory (2.7), and prepares the next."""
        names = ("log_norm", "memory", "log_mass", "log_sum", "memory_sum")
        log_norm, memory, log_mass, log_sum, memory_sum = (f"{prefix}{name}" for name in names)
        read = f"{prefix}{self.memory}"
        # 1. U, and M with it.
        state.update(
            update.update(self.window), "memory_update", [slot_ids, "position", read, memory_sum], [memory_sum]
        )
        writes = [log_norm, memory, *([read] if read != memory else [])]
        state.update(
            write.write(self.window), "memory_write", [slot_ids, "position", log_mass, memory_sum, *writes], writes
        )
        # 2. The softmaxes of the chunk that has ended.
        kernel, keys = start_chunk.start_chunk(self.window), f"{prefix}memory_keys"
        state.update(kernel, "start_chunk", [slot_ids, "position", keys, log_mass, log_sum], [log_mass, log_sum])

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
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm) (2.8), [n, D]."""
        u, average = self._norm_ema(call, prefix, mega, x)
        self._store_values(call, prefix, mega.wv, u)
        mx = self._group_norm(group_norm.rms_norm, "rms_norm", mega.rmsnorm, average)
        z, r, h = self._projections(mega, mx, x)
        queries, reads = self._attention_inputs(call, prefix, mega, rope, z)
        weights = self._attention_weights(call, call.state[f"{prefix}keys"], queries)
        merged = self._attention_values(call, prefix, weights, r, reads)
        self._absorb(Phase.PREFILL, call.slots, call.state, prefix, [x])
        return self._linear_residual(merged, mega.wh2.weight, None, h)

    def _ffn(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [n, D] (2.8) of y, its middle, and x, its input."""
        c, weights = self.build.config, self.build.weight_format
        u = self._group_norm(group_norm.layer_norm, "layer_norm", ffn.norm, y)
        kernel = prefill_linear.gate(c.model_dim, c.ffn_hidden_dim, c.swiglu, weights, self.hardware)
        hidden = launch(kernel, "gate", [u, *_matrices(ffn)], fresh(y.shape[0], c.ffn_hidden_dim, dtype=self.dtype))
        return self._linear_residual(hidden, ffn.fc2.weight, ffn.alpha, self.residual(x, y))

    def _moments(self, call: Call, prefix: str, x: Tensor) -> Tensor:
        """The moments [G, n, 2] that x [n, D] is normalized with (2.2)."""
        kernel, averages = timestep_norm.timestep_norm_moments(self.timestep_norm), self.moments(prefix)
        out = fresh(self.timestep_norm.groups, call.n, 2)
        arguments = [x, call.slots, "position", *averages]
        return call.state.update(kernel, "timestep_norm_moments", arguments, averages, [out])[0]

    def _norm_ema(self, call: Call, prefix: str, mega: Mega, x: Tensor) -> list[Tensor]:
        """u (2.2), the timestep norm of x [n, D], and u plus its moving averages (2.3), both [n, D]."""
        norm, ema = mega.timenorm, f"{prefix}ema"
        moments = self._moments(call, prefix, x)
        return call.state.update(
            norm_ema.norm_ema(self.timestep_norm, self.ema, self.dtype),
            "norm_ema",
            [x, norm.weight, norm.bias, mega.cema.coefficients, moments, call.slots, ema],
            [ema],
            [fresh(*x.shape, dtype=self.dtype), fresh(*x.shape)],
        )

    def _store_values(self, call: Call, prefix: str, wv: Module, u: Tensor) -> None:
        """Values of u [n, D] (2.4), into the cache."""
        window = self.window
        kernel = projections.value_projection(
            self.build.config.model_dim, window, self.build.weight_format, self.hardware
        )
        operands, values = [u, *present(wv.weight, wv.bias)], self.values(prefix)
        if window.scaled:
            v = launch(kernel, "value_projection", operands, fresh(call.n, window.value_dim, dtype=self.dtype))
            kernel = value_cache.quantize_values(window, self.dtype)
            call.state.update(kernel, "quantize_values", [v, call.slots, "position", *values], values)
        else:
            call.state.update(kernel, "value_projection", [*operands, call.slots, "position", *values], values)

    def _group_norm(self, factory: Callable[..., tirx.PrimFunc], hint: str, norm: Norm, x: Tensor) -> Tensor:
        """The RMS norm (2.4) or layer norm (2.8) of x [n, D]."""
        arguments = [x, *present(norm.weight, norm.bias)]
        return launch(factory(self.group_norm, self.dtype), hint, arguments, fresh(*x.shape, dtype=self.dtype))

    def _projections(self, mega: Mega, mx: Tensor, x: Tensor) -> list[Tensor]:
        """z [n, Z], r [n, E] (2.4) and h = x + wh1 mx (2.8) [n, D] of mx [n, D]."""
        n, dim = x.shape
        return launch_all(
            projections.projections(self.build.config.model_dim, self.window, self.build.weight_format, self.hardware),
            "projections",
            [mx, *(tensor for layer in (mega.wz, mega.wr, mega.wh1) for tensor in (layer.weight, layer.bias)), x],
            [fresh(n, self.window.z_dim), fresh(n, self.window.value_dim, dtype=self.dtype), fresh(n, dim)],
        )

    def _attention_inputs(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, z: Tensor) -> list[Tensor]:
        """Queries [n, 2, Z] and read weights [n, Z] (2.5) of z [n, Z]; keys and memory keys, into the caches."""
        caches = [f"{prefix}keys", f"{prefix}memory_keys"]
        return call.state.update(
            attention_inputs.attention_inputs(self.window, self.dtype),
            "attention_inputs",
            [z, mega.gamma, mega.beta, rope.cos, rope.sin, call.slots, "position", *caches],
            caches,
            [fresh(call.n, 2, self.window.z_dim, dtype=self.dtype), fresh(call.n, self.window.z_dim, dtype=self.dtype)],
        )

    def _attention_weights(self, call: Call, keys: Tensor, queries: Tensor) -> Tensor:
        """The softmax of the scores (2.6), [H, n, 2, K]."""
        shape, heads, chunk_size = (self.window, self.dtype, self.hardware), self.window.heads, self.window.chunk_size
        arguments = [queries, call.slots, call.state["position"], keys]
        statistics = launch(
            attention_softmax.attention_statistics(*shape),
            "attention_statistics",
            arguments,
            fresh(heads, scores.splits(chunk_size), call.n, 2),
        )
        return launch(
            attention_softmax.attention_weights(*shape),
            "attention_weights",
            [*arguments, statistics],
            fresh(heads, call.n, 2, scores.padded(chunk_size), dtype=self.dtype),
        )

    def _attention_values(self, call: Call, prefix: str, weights: Tensor, r: Tensor, reads: Tensor) -> Tensor:
        """sca ⊙ r + awm (2.6, 2.7), [n, E]."""
        values = [call.state[name] for name in self.values(prefix)]
        memory = call.state[f"{prefix}{self.memory}"]
        return launch(
            attention_values.attention_values(self.window, self.dtype, self.hardware),
            "attention_values",
            [weights, call.slots, call.state["position"], *values, r, reads, memory],
            fresh(*r.shape, dtype=self.dtype),
        )

    def _linear_residual(self, x: Tensor, weight: Tensor, scale: Tensor | None, residual: Tensor) -> Tensor:
        """residual [n, D] + scale ⊙ W x, of x [n, K]."""
        inputs, outputs = (int(rows.shape[1]) for rows in (x, residual))
        kernel = prefill_linear.linear_residual(
            inputs, outputs, self.build.weight_format, scale is not None, self.hardware
        )
        return launch(kernel, "linear_residual", [x, weight, *present(scale), residual], fresh(*residual.shape))

    # Both.

    def _absorb(self, phase: Phase, slot_ids: Tensor, state: State, prefix: str, rows: list[Tensor]) -> None:
        """What tokens add for the memory (8c); in prefill, `rows` [n, D] tell how many they are."""
        kernel = absorb.absorb(phase, self.build.config.model_dim, self.window)
        names = ["memory_keys", *self.build.value_tensors, "log_mass", "log_sum", "memory_sum"]
        arguments = [*rows, slot_ids, "position", *(f"{prefix}{name}" for name in names)]
        state.update(kernel, "absorb", arguments, [f"{prefix}memory_sum"])


def _matrices(ffn: NormalizedFFN) -> list[Tensor]:
    """The weights that share the FFN's input."""
    return [ffn.fc1.weight] if ffn.fc3 is None else [ffn.fc1.weight, ffn.fc3.weight]


def _row(count: Any, features: int, quantized: QuantizedRow | None) -> Tensor:
    """Rows of activations that a kernel makes."""
    width, dtype = row_shape(features, quantized)
    return fresh(count, width, dtype=dtype)
