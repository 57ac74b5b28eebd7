"""Gecko as launches of the CUDA kernels.

Decode is seven kernels a layer, each started while its predecessor ends. In prefill, activations that feed the
tensor cores have the weights' dtype; what adds up over layers or time is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.relax.frontend.nn import Module, Tensor, op

from gecko_mlc.model.family import Family, present
from gecko_mlc.model.parameters import Block, Mega, Norm, NormalizedFFN, RotaryTables
from gecko_mlc.model.quantize import Matrix
from gecko_mlc.model.trace import Build, Call, State, fresh, launch, launch_all
from gecko_mlc.tir_kernels.cuda.decode import attention as decode_attention
from gecko_mlc.tir_kernels.cuda.decode import attention_merge
from gecko_mlc.tir_kernels.cuda.decode import linear as decode_linear
from gecko_mlc.tir_kernels.cuda.decode import norm_ema as decode_norm_ema
from gecko_mlc.tir_kernels.cuda.decode import timestep_norm as decode_timestep_norm
from gecko_mlc.tir_kernels.cuda.gemv import gemv
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
from gecko_mlc.tir_kernels.cuda.state import embedding, sampling, slots, value_cache
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

    def embed(self, call: Call, tokens: Tensor | None, table: Matrix) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""
        c = self.build.config
        scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0
        out = fresh(call.n, c.model_dim)
        if tokens is None:
            kernel = embedding.take_current(c.vocab_size, c.model_dim, scale, table.format, self.build.slots)
            return launch(kernel, "embedding", [call.state["token"], call.slots, table.weight], out)
        kernel = embedding.take(c.vocab_size, c.model_dim, scale, table.format)
        return launch(kernel, "embedding", [tokens, table.weight], out)

    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block."""
        mega, ffn = (self._mega_step, self._ffn_step) if call.phase is Phase.DECODE else (self._mega, self._ffn)
        return ffn(block.nffn, mega(call, block.prefix, block.mega, rope, x), x)

    def store_logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix) -> None:
        """The logits of each sequence's last row, into the state."""
        c = self.build.config
        decoding = call.phase is Phase.DECODE
        factory = decode_timestep_norm.timestep_norm_step if decoding else timestep_norm.last_timestep_norm
        averages = ["final_norm_mean", "final_norm_var"]
        (y,) = call.state.update(
            factory(self.timestep_norm) if not decoding else factory(*self._norm_shape()),
            "final_norm",
            [x, norm.weight, norm.bias, call.slots, "position", *averages],
            averages,
            [fresh(call.n if decoding else 1, c.model_dim)],
        )
        rows = self.build.slots if decoding else 1
        kernel = decode_linear.head(c.model_dim, c.num_outputs, self.build.slots, head.format, rows, self.machine)
        call.state.update(kernel, "head", [y, head.weight, call.slots, "logits"], ["logits"])

    def logits(self, call: Call, norm: Norm, x: Tensor, head: Matrix, into: Tensor | None = None) -> Tensor:
        """The logits [n, O] of all rows."""
        y = launch(
            timestep_norm.timestep_norm(self.timestep_norm, self.dtype),
            "timestep_norm",
            [x, norm.weight, norm.bias, self._moments(call, "final_", x)],
            fresh(call.n, head.inputs, dtype=self.dtype),
        )
        kernel = prefill_linear.linear(head.inputs, head.outputs, head.format, self.machine)
        if into is not None:
            return op.tensor_ir_inplace_op(kernel, "head", [y, head.weight, into], [2], into)
        return launch(kernel, "head", [y, head.weight], fresh(call.n, head.outputs))

    def score(self, logits: Tensor, targets: Tensor, log_probabilities: Tensor, entropies: Tensor) -> list[Tensor]:
        """Log-probabilities [n] of the targets and entropies [n], in place."""
        return list(
            op.tensor_ir_inplace_op(
                sampling.score(self.build.config.num_outputs),
                "score",
                [logits, targets, log_probabilities, entropies],
                [2, 3],
                [log_probabilities, entropies],
            )
        )

    def advance(self, call: Call, tokens: Tensor) -> None:
        """The position moves on by the tokens [n]."""
        kernel = slots.advance(call.phase, self.build.slots)
        call.state.update(kernel, "advance", [tokens, call.slots, "position"], ["position"])

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

    def next_chunk(self, slot_ids: Tensor, state: State) -> None:
        """On to offset 0 of the next chunk."""
        state.update(slots.next_chunk(self.build.slots), "next_chunk", [slot_ids, "position"], ["position"])

    def sample(self, slot_ids: Tensor, state: State) -> None:
        """The next current token of each slot."""
        c = self.build.config
        state.update(
            sampling.sample(c.num_outputs, min(c.num_outputs, c.vocab_size), self.build.slots),
            "sample",
            [slot_ids, "logits", "sampling", "random", "counts", "token", "recent"],
            ["random", "counts", "token", "recent"],
        )

    def fill(self, slot_ids: Tensor, state: State, name: str, shape: tuple[int, ...], dtype: str, value: float) -> None:
        """Every element of a state tensor, in the slots, becomes `value`."""
        state.update(slots.fill(self.build.slots, shape, dtype, value), "fill", [slot_ids, name], [name])

    def copy(self, slot_ids: Tensor, state: State, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """The first slot's part of a state tensor, into the second slot."""
        state.update(slots.copy(self.build.slots, shape, dtype), "copy", [slot_ids, name], [name])

    # Decode.

    def _mega_step(self, call: Call, prefix: str, mega: Mega, rope: RotaryTables, x: Tensor) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [b, D]."""
        c, b, total = self.build.config, call.n, self.build.slots
        weights = self.build.weight_format
        state = [f"{prefix}{name}" for name in ("norm_mean", "norm_var", "ema")]
        rounded = decode_norm_ema.quantized_output(
            c.model_dim, c.timenorm_num_groups, c.layernorm_num_groups, weights, total
        )
        # Whoever rounds applies the gain of the norm between the two.
        gain = _present(mega.rmsnorm.weight)
        made_with, read_with = (gain, []) if rounded else ([], gain)
        u, mixed = call.state.update(
            decode_norm_ema.norm_ema_step(
                c.model_dim,
                c.timenorm_num_groups,
                c.cema_ndim,
                total,
                c.chunk_size,
                self._betas(),
                c.norm_eps,
                rounded,
                bool(made_with),
            ),
            "norm_ema",
            [
                x,
                mega.timenorm.weight,
                mega.timenorm.bias,
                mega.cema.coefficients,
                call.slots,
                "position",
                *state,
                *made_with,
            ],
            state,
            [_row(b, c.model_dim, rounded), _row(b, c.model_dim, rounded)],
        )
        keys, memory_keys = f"{prefix}keys", f"{prefix}memory_keys"
        layers = (mega.wv, mega.wz, mega.wr, mega.wh1)
        v, z, r, h = launch_all(
            decode_linear.projections(
                c.model_dim,
                c.z_dim,
                c.value_dim,
                c.layernorm_num_groups,
                c.norm_eps,
                bool(read_with),
                weights,
                total,
                self.machine,
                rounded,
            ),
            "projections",
            [
                u,
                mixed,
                *read_with,
                *(tensor for layer in layers for tensor in _present(layer.weight, layer.bias)),
                x,
            ],
            [fresh(b, c.value_dim), fresh(b, c.z_dim), fresh(b, c.value_dim), fresh(b, c.model_dim)],
        )
        shape, cache = (c.z_dim, c.value_dim, c.num_heads), [keys, *self._values(prefix), memory_keys]
        parts = decode_attention.parts(c.chunk_size, c.num_heads)
        partial, statistics = call.state.update(
            decode_attention.attend(
                *shape, c.rope_heads, total, c.chunk_size, c.norm_eps, self.key_dtype, self.value_dtype
            ),
            "attend",
            [z, v, mega.gamma, mega.beta, rope.cos, rope.sin, call.slots, "position", *cache],
            cache,
            [fresh(b, c.num_heads, parts, c.value_head_dim), fresh(b, c.num_heads, parts, 2)],
        )
        rounded = attention_merge.quantized_output(c.value_dim, c.num_heads, self.key_dtype, weights, total)
        merged = launch(
            attention_merge.merge(*shape, total, c.chunk_size, c.norm_eps, self.key_dtype, rounded),
            "merge",
            [
                z,
                mega.gamma,
                mega.beta,
                partial,
                statistics,
                r,
                call.slots,
                call.state["position"],
                call.state[f"{prefix}{self.memory}"],
            ],
            _row(b, c.value_dim, rounded),
        )
        kernel = decode_linear.linear_residual(c.value_dim, c.model_dim, weights, False, total, self.machine, rounded)
        return launch(kernel, "linear_residual", [merged, mega.wh2.weight, h], fresh(b, c.model_dim))

    def _ffn_step(self, ffn: NormalizedFFN, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [b, D] of y, its middle, and x, its input."""
        c, b, rows, weights = self.build.config, y.shape[0], self.build.slots, self.build.weight_format
        rounded = gemv.quantized_output(c.ffn_hidden_dim, weights, rows, 2 if c.swiglu else 1)
        hidden = launch(
            decode_linear.gate(
                c.model_dim,
                c.ffn_hidden_dim,
                c.layernorm_num_groups,
                c.norm_eps,
                c.norm_affine,
                c.swiglu,
                weights,
                rows,
                self.machine,
                rounded,
            ),
            "gate",
            [y, *_present(ffn.norm.weight, ffn.norm.bias), *_matrices(ffn)],
            _row(b, c.ffn_hidden_dim, rounded),
        )
        scaled = ffn.alpha is not None
        kernel = decode_linear.linear_residual(
            c.ffn_hidden_dim, c.model_dim, weights, scaled, rows, self.machine, rounded
        )
        residual = x if c.two_hop_residual else y
        arguments = [hidden, ffn.fc2.weight, *_present(ffn.alpha), residual]
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
        kernel = prefill_linear.gate(c.model_dim, c.ffn_hidden_dim, c.swiglu, weights, self.machine)
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
        c, window = self.build.config, self.window
        kernel = projections.value_projection(c.model_dim, window, self.build.weight_format, self.machine)
        operands, values = [u, *present(wv.weight, wv.bias)], self.values(prefix)
        if window.scaled:
            v = launch(kernel, "value_projection", operands, fresh(call.n, c.value_dim, dtype=self.dtype))
            kernel = value_cache.quantize_values(c.value_dim, c.num_heads, self.build.slots, c.chunk_size, self.dtype)
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
            projections.projections(self.build.config.model_dim, self.window, self.build.weight_format, self.machine),
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
        shape, heads, chunk_size = (self.window, self.dtype, self.machine), self.window.heads, self.window.chunk_size
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
            attention_values.attention_values(self.window, self.dtype, self.machine),
            "attention_values",
            [weights, call.slots, call.state["position"], *values, r, reads, memory],
            fresh(*r.shape, dtype=self.dtype),
        )

    def _linear_residual(self, x: Tensor, weight: Tensor, scale: Tensor | None, residual: Tensor) -> Tensor:
        """residual [n, D] + scale ⊙ W x, of x [n, K]."""
        inputs, outputs = (int(rows.shape[1]) for rows in (x, residual))
        kernel = prefill_linear.linear_residual(
            inputs, outputs, self.build.weight_format, scale is not None, self.machine
        )
        return launch(kernel, "linear_residual", [x, weight, *present(scale), residual], fresh(*residual.shape))

    # Both.

    def _absorb(self, phase: Phase, slot_ids: Tensor, state: State, prefix: str, rows: list[Tensor]) -> None:
        """What tokens add for the memory (8c); in prefill, `rows` [n, D] tell how many they are."""
        kernel = absorb.absorb(phase, self.build.config.model_dim, self.window)
        names = ["memory_keys", *self.build.value_tensors, "log_mass", "log_sum", "memory_sum"]
        arguments = [*rows, slot_ids, "position", *(f"{prefix}{name}" for name in names)]
        state.update(kernel, "absorb", arguments, [f"{prefix}memory_sum"])

    def _values(self, prefix: str) -> list[str]:
        return [f"{prefix}{name}" for name in self.build.value_tensors]

    def _betas(self) -> tuple[float, float]:
        return self.build.config.timenorm_beta1, self.build.config.timenorm_beta2

    def _norm_shape(self) -> tuple[Any, ...]:
        c = self.build.config
        return c.model_dim, c.timenorm_num_groups, self.build.slots, c.chunk_size, self._betas(), c.norm_eps


def _present(*parameters: Tensor | None) -> list[Tensor]:
    return [p for p in parameters if p is not None]


def _matrices(ffn: NormalizedFFN) -> list[Tensor]:
    """The weights that share the FFN's input."""
    return [ffn.fc1.weight] if ffn.fc3 is None else [ffn.fc1.weight, ffn.fc3.weight]


def _row(count: Any, features: int, rounded: QuantizedRow | None) -> Tensor:
    """Rows of activations that a kernel makes."""
    width, dtype = row_shape(features, rounded)
    return fresh(count, width, dtype=dtype)
