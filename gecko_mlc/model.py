"""Gecko in TVM's Relax frontend: the specification's equations as launches of TensorIR kernels.

Parameters are named as in the reference's state_dict. State is read and written in place through opaque
kernels only, always through its newest alias (`State`), and every alias is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from gecko_mlc.abi import StateTensor
from gecko_mlc.config import GeckoConfig
from gecko_mlc.quantization import Quantization
from gecko_mlc.state import state_tensors
from gecko_mlc.tir_kernels import (
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
from gecko_mlc.tir_kernels.machine import Machine, divide
from gecko_mlc.tir_kernels.rows import Rows


class Build(NamedTuple):
    """What decides the kernels of a library: the model, its dtypes, the machine and the slots."""

    config: GeckoConfig
    quantization: Quantization
    machine: Machine
    slots: int


class State:
    """The state tensors inside one function: newest aliases by name."""

    def __init__(self, specs: Sequence[StateTensor], tensors: Sequence[Tensor]) -> None:
        self._tensors = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def update(
        self,
        kernel: tirx.PrimFunc,
        hint: str,
        arguments: Sequence[Tensor | str],
        writes: Sequence[str],
        outputs: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Launch a kernel that writes the state tensors named in `writes`; its fresh outputs.

        Arguments given by name are state. Outputs follow the arguments in the kernel's signature.
        """
        tensors = [self[a] if isinstance(a, str) else a for a in arguments]
        names = [a if isinstance(a, str) else None for a in arguments]
        indices = [names.index(name) for name in writes] + [-1] * len(outputs)
        out = [self[name] for name in writes] + list(outputs)
        if len(out) == 1:
            results = [op.tensor_ir_inplace_op(kernel, hint, tensors, indices, out[0])]
        else:
            results = list(op.tensor_ir_inplace_op(kernel, hint, tensors, indices, out))
        self._tensors.update(zip(writes, results, strict=False))
        return results[len(writes) :]

    def aliases(self) -> list[Tensor]:
        """All newest aliases, in the order of the arguments."""
        return list(self._tensors.values())


class Call(NamedTuple):
    """One function being traced: n rows, what they are, the slots they belong to, and the state."""

    rows: Rows
    n: Any
    slots: Tensor
    state: State


def fresh(*shape: Any, dtype: str = "float32") -> Tensor:
    """The description of a kernel's output."""
    return Tensor.placeholder(list(shape), dtype)


def pack(x: Tensor, machine: Machine) -> Tensor:
    """x [n, K] in the layout of a register tile, shared by the products that read it."""
    n, features = x.shape
    out = fresh(divide(n, machine.tile_rows), features, machine.tile_rows)
    return op.tensor_ir_op(linear.pack_rows(int(features), machine), "pack_rows", [x], out)


def product(
    build: Build,
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    epilogue: str = "plain",
    operands: Sequence[Tensor] = (),
    activation: str | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """x [n, in] times weight [out, in], with an epilogue of `tir_kernels.linear`; packed is `pack(x)`.

    The result is fresh, or written to `into`.
    """
    out_features, in_features = (int(extent) for extent in weight.shape)
    dtype, machine = build.quantization.matrix_dtype, build.machine
    kernel = linear.linear(in_features, out_features, dtype, machine, epilogue, activation)
    arguments = [x, packed, weight, *operands]
    if into is not None:
        return op.tensor_ir_inplace_op(kernel, "linear", [*arguments, into], [len(arguments)], into)
    return op.tensor_ir_op(kernel, "linear", arguments, fresh(x.shape[0], out_features))


class Linear(nn.Module):
    """A weight matrix [out, in] of the quantization's dtype, with or without an fp32 bias."""

    def __init__(self, build: Build, in_features: int, out_features: int, bias: bool) -> None:
        self.build = build
        self.weight = nn.Parameter((out_features, in_features), build.quantization.matrix_dtype)
        self.bias = nn.Parameter((out_features,), "float32") if bias else None

    def forward(
        self,
        x: Tensor,
        packed: Tensor,
        epilogue: str = "plain",
        operands: Sequence[Tensor] = (),
        activation: str | None = None,
    ) -> Tensor:
        """The product of x [n, in]; a bias is an epilogue of its own."""
        if self.bias is not None:
            epilogue, operands = "bias", [self.bias]
        return product(self.build, x, packed, self.weight, epilogue, operands, activation)


class TimestepNorm(nn.Module):
    """Timestep decay norm (2.2); its moments are the state `<prefix>norm_mean`, `<prefix>norm_var`."""

    def __init__(self, build: Build, prefix: str) -> None:
        self.build, self.moments = build, [f"{prefix}norm_mean", f"{prefix}norm_var"]
        self.weight = nn.Parameter((build.config.model_dim,), "float32")
        self.bias = nn.Parameter((build.config.model_dim,), "float32")

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """y [n, D] of x [n, D]."""
        c = self.build.config
        kernel = timestep_norm.timestep_norm(
            call.rows,
            c.model_dim,
            c.timenorm_num_groups,
            self.build.slots,
            c.chunk_size,
            (c.timenorm_beta1, c.timenorm_beta2),
            c.norm_eps,
            self.build.machine,
        )
        (y,) = call.state.update(
            kernel,
            "timestep_norm",
            [x, self.weight, self.bias, call.slots, "position", *self.moments],
            self.moments,
            [fresh(call.n, c.model_dim)],
        )
        return y


class ComplexEMA(nn.Module):
    """Complex EMA (2.3), its coefficients made by `derived.cema_coefficients`."""

    def __init__(self, build: Build, prefix: str) -> None:
        c = build.config
        self.build, self.hidden = build, f"{prefix}ema"
        self.coefficients = nn.Parameter((5, c.cema_ndim, c.model_dim), "float32")

    def forward(self, call: Call, u: Tensor) -> Tensor:
        """u + ema [n, D] of u [n, D]."""
        c = self.build.config
        kernel = complex_ema.complex_ema(call.rows, c.model_dim, c.cema_ndim, self.build.slots, self.build.machine)
        (y,) = call.state.update(
            kernel,
            "complex_ema",
            [u, self.coefficients, call.slots, self.hidden],
            [self.hidden],
            [fresh(call.n, c.model_dim)],
        )
        return y


class RMSNorm(nn.Module):
    """Group RMS norm (2.4)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.build = build
        self.weight = nn.Parameter((c.model_dim,), "float32") if c.norm_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """y [n, D] of x [n, D]."""
        c = self.build.config
        kernel = group_norm.rms_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.build.machine)
        weights = [] if self.weight is None else [self.weight]
        return op.tensor_ir_op(kernel, "rms_norm", [x, *weights], fresh(*x.shape))


class LayerNorm(nn.Module):
    """Group layer norm (2.8)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.build = build
        self.weight = nn.Parameter((c.model_dim,), "float32") if c.norm_affine else None
        self.bias = nn.Parameter((c.model_dim,), "float32") if c.norm_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """y [n, D] of x [n, D]."""
        c = self.build.config
        kernel = group_norm.layer_norm(
            c.model_dim, c.layernorm_num_groups, c.norm_eps, c.norm_affine, self.build.machine
        )
        weights = [] if self.weight is None else [self.weight, self.bias]
        return op.tensor_ir_op(kernel, "layer_norm", [x, *weights], fresh(*x.shape))


class RotaryTables(nn.Module):
    """cos and sin of the angles of two chunks (8b)."""

    def __init__(self, config: GeckoConfig) -> None:
        shape = (2 * config.chunk_size, config.head_dim // 2)
        self.cos = nn.Parameter(shape, "float32")
        self.sin = nn.Parameter(shape, "float32")


class Mega(nn.Module):
    """The token mixer of a block (2.2 to 2.8)."""

    def __init__(self, build: Build, prefix: str) -> None:
        c = build.config
        self.build, self.prefix = build, prefix
        self.timenorm = TimestepNorm(build, prefix)
        self.cema = ComplexEMA(build, prefix)
        self.rmsnorm = RMSNorm(build)
        self.wv = Linear(build, c.model_dim, c.value_dim, bias=True)
        self.wz = Linear(build, c.model_dim, c.z_dim, bias=True)
        self.wr = Linear(build, c.model_dim, c.value_dim, bias=True)
        self.wh1 = Linear(build, c.model_dim, c.model_dim, bias=True)
        self.wh2 = Linear(build, c.value_dim, c.model_dim, bias=False)
        self.gamma = nn.Parameter((4, c.z_dim), "float32")
        self.beta = nn.Parameter((4, c.z_dim), "float32")

    def forward(self, call: Call, x: Tensor, rope: RotaryTables) -> Tensor:
        """y = x + wh1 mx + wh2 (sca ⊙ r + awm), [n, D]."""
        c, machine, total = self.build.config, self.build.machine, self.build.slots
        u = self.timenorm(call, x)
        v = self.wv(u, pack(u, machine), activation="silu")
        mx = self.rmsnorm(self.cema(call, u))
        packed = pack(mx, machine)
        z = self.wz(mx, packed)
        r = self.wr(mx, packed, activation="silu")
        h1 = self.wh1(mx, packed)

        dtype = self.build.quantization.cache_dtype
        keys, values, memory_keys, memory = (
            f"{self.prefix}{name}" for name in ("keys", "values", "memory_keys", "memory")
        )
        queries, weights = call.state.update(
            attention_inputs.attention_inputs(
                call.rows,
                c.z_dim,
                c.value_dim,
                c.num_heads,
                c.rope_heads,
                total,
                c.chunk_size,
                c.norm_eps,
                dtype,
            ),
            "attention_inputs",
            [
                z,
                v,
                self.gamma,
                self.beta,
                rope.cos,
                rope.sin,
                call.slots,
                "position",
                keys,
                values,
                memory_keys,
            ],
            [keys, values, memory_keys],
            [fresh(call.n, 2, c.z_dim), fresh(call.n, c.z_dim)],
        )
        sca = self._attend(call, queries, call.state[keys], call.state[values])
        merged = op.tensor_ir_op(
            working_memory.read(call.rows, c.z_dim, c.value_dim, c.num_heads, total, machine),
            "working_memory_read",
            [weights, sca, r, call.slots, call.state[memory]],
            fresh(call.n, c.value_dim),
        )
        y = self.wh2(merged, pack(merged, machine), "residual2", [x, h1])
        return y

    def _attend(self, call: Call, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """sca [n, E] (2.6)."""
        c, machine = self.build.config, self.build.machine
        shapes = (
            c.z_dim,
            c.value_dim,
            c.num_heads,
            self.build.slots,
            c.chunk_size,
            self.build.quantization.cache_dtype,
            machine,
        )
        arguments = [queries, call.slots, call.state["position"], keys, values]
        out = fresh(call.n, c.value_dim)
        if call.rows is Rows.PREFILL:
            return op.tensor_ir_op(chunk_attention.prefill(*shapes), "attention", arguments, out)
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
        kernel = chunk_attention.combine(c.value_dim, c.num_heads, c.chunk_size, machine)
        return op.tensor_ir_op(kernel, "attention_combine", list(partial), out)

    def end_chunk(self, slot_ids: Tensor, state: State) -> None:
        """The working-memory write (2.7)."""
        c, b = self.build.config, slot_ids.shape[0]
        dtype, dz = self.build.quantization.cache_dtype, c.head_dim
        keys, values, memory, log_norm = (
            f"{self.prefix}{name}" for name in ("memory_keys", "values", "memory", "log_norm")
        )
        kappa, shares, rho = state.update(
            working_memory.write_weights(c.z_dim, c.num_heads, self.build.slots, c.chunk_size, dtype),
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
                dtype,
                self.build.machine,
            ),
            "working_memory_write",
            [kappa, shares, rho, slot_ids, "position", values, memory],
            [memory],
        )


class NormalizedFFN(nn.Module):
    """The feed-forward part of a block (2.8)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.build = build
        self.norm = LayerNorm(build)
        self.fc1 = Linear(build, c.model_dim, c.ffn_hidden_dim, bias=False)
        self.fc2 = Linear(build, c.ffn_hidden_dim, c.model_dim, bias=False)
        self.fc3 = Linear(build, c.model_dim, c.ffn_hidden_dim, bias=False) if c.swiglu else None
        self.alpha = nn.Parameter((c.model_dim,), "float32") if c.rescale_nffn else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The block's output [n, D] of y, its middle, and x, its input."""
        machine = self.build.machine
        u = self.norm(y)
        packed = pack(u, machine)
        hidden = self.fc1(u, packed, activation="silu")
        if self.fc3 is not None:
            hidden = self.fc3(u, packed, "gate", [hidden])
        residual = x if self.build.config.two_hop_residual else y
        packed = pack(hidden, machine)
        if self.alpha is not None:
            return self.fc2(hidden, packed, "scale_residual", [self.alpha, residual])
        return self.fc2(hidden, packed, "residual", [residual])


class Block(nn.Module):
    """One Gecko block."""

    def __init__(self, build: Build, layer: int) -> None:
        self.mega = Mega(build, f"layers.{layer}.")
        self.nffn = NormalizedFFN(build)

    def forward(self, call: Call, x: Tensor, rope: RotaryTables) -> Tensor:
        """The block's output [n, D] of its input."""
        return self.nffn(self.mega(call, x, rope), x)


class Embedding(nn.Module):
    """Token embedding (2.1)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.build = build
        self.weight = nn.Parameter((c.vocab_size, c.model_dim), build.quantization.matrix_dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """x [n, D] of tokens [n]."""
        c = self.build.config
        scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0
        kernel = embedding.take(c.vocab_size, c.model_dim, scale, self.build.quantization.matrix_dtype)
        return op.tensor_ir_op(kernel, "embedding", [tokens, self.weight], fresh(tokens.shape[0], c.model_dim))


class Output(nn.Module):
    """Final norm and head; a tied head has no weight of its own."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.final_norm = TimestepNorm(build, "final_")
        if not c.share_emb:
            self.output = Linear(build, c.model_dim, c.num_outputs, bias=False)


class Gecko(nn.Module):
    """The functions of the library; `gecko_mlc.abi` lists their arguments."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.specs = tuple(state_tensors(build.config, build.quantization))
        self.embed = Embedding(build)
        self.rope = RotaryTables(build.config)
        self.layers = nn.ModuleList([Block(build, i) for i in range(build.config.num_layers)])
        self.output = Output(build)

    def prefill(self, tokens: Tensor, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """Tokens of one slot that stay within a chunk; logits of the last one into the state."""
        call = Call(Rows.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        x = self._trunk(call, tokens)
        dim = self.build.config.model_dim
        last = op.tensor_ir_op(embedding.last_row(dim), "last_row", [x], fresh(1, dim))
        self._store_logits(call, last)
        return call.state.aliases()

    def prefill_logits(self, tokens: Tensor, result: Tensor, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The same, with the logits [n, O] of all tokens as the result."""
        call = Call(Rows.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        logits = self._head(self._trunk(call, tokens), into=result)
        return [logits, *call.state.aliases()]

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
        call = Call(Rows.PREFILL, tokens.shape[0], slot_ids, State(self.specs, state))
        logits = self._head(self._trunk(call, tokens))
        results = op.tensor_ir_inplace_op(
            sampling.score(self.build.config.num_outputs, self.build.machine),
            "score",
            [logits, targets, log_probabilities, entropies],
            [2, 3],
            [log_probabilities, entropies],
        )
        return [*results, *call.state.aliases()]

    def decode(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The state's token of each slot; logits into the state."""
        call = Call(Rows.DECODE, slot_ids.shape[0], slot_ids, State(self.specs, state))
        tokens = op.tensor_ir_op(
            embedding.current_tokens(self.build.slots),
            "current_tokens",
            [call.state["token"], slot_ids],
            fresh(call.n, dtype="int32"),
        )
        self._store_logits(call, self._trunk(call, tokens))
        return call.state.aliases()

    def end_chunk(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The memory write of slots whose chunk is complete; on to the next chunk."""
        states = State(self.specs, state)
        for layer in self.layers:
            layer.mega.end_chunk(slot_ids, states)
        kernel = slots.next_chunk(self.build.slots)
        states.update(kernel, "next_chunk", [slot_ids, "position"], ["position"])
        return states.aliases()

    def sample(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """A token for each slot, from its logits and sampling parameters."""
        c, states = self.build.config, State(self.specs, state)
        b = slot_ids.shape[0]
        states.update(
            sampling.sample(c.num_outputs, min(c.num_outputs, c.vocab_size), self.build.slots, self.build.machine),
            "sample",
            [slot_ids, "logits", "sampling", "random", "counts", "token", "recent"],
            ["random", "counts", "token", "recent"],
            [fresh(b, c.num_outputs), fresh(b, c.num_outputs)],
        )
        return states.aliases()

    def reset_slot(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """The initial state, in each of the slots."""
        states = State(self.specs, state)
        for spec in self.specs:
            value = -math.inf if spec.initial == "minus_infinity" else 0.0
            kernel = slots.fill(self.build.slots, spec.shape, spec.dtype, value)
            states.update(kernel, "fill", [slot_ids, spec.name], [spec.name])
        return states.aliases()

    def copy_slot(self, slot_ids: Tensor, *state: Tensor) -> list[Tensor]:
        """All of the first slot's state into the second slot."""
        states = State(self.specs, state)
        for spec in self.specs:
            kernel = slots.copy(self.build.slots, spec.shape, spec.dtype)
            states.update(kernel, "copy", [slot_ids, spec.name], [spec.name])
        return states.aliases()

    def _trunk(self, call: Call, tokens: Tensor) -> Tensor:
        """Everything before the head, [n, D]; the position moves on."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(call, x, self.rope)
        x = self.output.final_norm(call, x)
        kernel = slots.advance(call.rows, self.build.slots)
        call.state.update(kernel, "advance", [tokens, call.slots, "position"], ["position"])
        return x

    def _head(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Logits [n, O]."""
        tied = self.build.config.share_emb
        weight = self.embed.weight if tied else self.output.output.weight
        return product(self.build, x, pack(x, self.build.machine), weight, into=into)

    def _store_logits(self, call: Call, x: Tensor) -> None:
        kernel = embedding.store_logits(self.build.config.num_outputs, self.build.slots, self.build.machine)
        call.state.update(kernel, "store_logits", [self._head(x), call.slots, "logits"], ["logits"])
