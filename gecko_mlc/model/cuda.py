"""Gecko as launches of the CUDA kernels.

Decode is eight kernels a layer that start while their predecessors end. Prefill keeps activations that feed
the tensor cores in the weights' dtype, everything that adds up over layers or time in fp32.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.relax.frontend.nn import Tensor, op

from gecko_mlc.derived import EMA_BLOCK
from gecko_mlc.model.launch import Build, Call, State, fresh, launch
from gecko_mlc.model.parameters import Block, Mega, NormalizedFFN, Norm, RotaryTables
from gecko_mlc.tir_kernels.cuda import (
    attention_inputs,
    attention_step,
    chunk_attention,
    complex_ema,
    decode_linear,
    embedding,
    group_norm,
    linear,
    sampling,
    slots,
    timestep_norm,
    working_memory,
)
from gecko_mlc.tir_kernels.machine import CUDA, divide
from gecko_mlc.tir_kernels.rows import Rows


class CUDALaunches:
    """The parts of a function, each a method that launches its kernels."""

    def __init__(self, build: Build) -> None:
        assert isinstance(build.machine, CUDA)
        self.build = build
        self.dtype, self.cache_dtype = build.quantization.matrix_dtype, build.quantization.cache_dtype
        # Reads of the memory are rounded with the caches.
        self.memory = "memory" if self.cache_dtype == "float32" else "memory_read"

    def embed(self, call: Call, tokens: Tensor | None, weight: Tensor) -> Tensor:
        """x [n, D] (2.1) of the tokens, or of the state's current ones."""
        c = self.build.config
        scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0
        out = fresh(call.n, c.model_dim)
        if tokens is None:
            kernel = embedding.take_current(c.vocab_size, c.model_dim, scale, self.dtype, self.build.slots)
            return launch(kernel, "embedding", [call.state["token"], call.slots, weight], out)
        kernel = embedding.take(c.vocab_size, c.model_dim, scale, self.dtype)
        return launch(kernel, "embedding", [tokens, weight], out)

    def block(self, call: Call, block: Block, rope: RotaryTables, x: Tensor) -> Tensor:
        """The output [n, D] of a block."""
        if call.rows is Rows.DECODE:
            middle = self._mega_step(call, block.prefix, block.mega, rope, x)
        else:
            middle = self._mega(call, block.prefix, block.mega, rope, x)
        return self._ffn(call, block.nffn, middle, x)

    def final_norm(self, call: Call, norm: Norm, x: Tensor) -> Tensor:
        """The rows [n, D] that go to the head, in the weights' dtype in prefill."""
        c = self.build.config
        moments = ["final_norm_mean", "final_norm_var"]
        arguments = [x, norm.weight, norm.bias, call.slots, "position", *moments]
        kernel = timestep_norm.timestep_norm_step(*self._norm_shape())
        (y,) = call.state.update(kernel, "final_norm", arguments, moments, [fresh(call.n, c.model_dim)])
        return y

    def _norm_shape(self) -> tuple[Any, ...]:
        c = self.build.config
        return (
            c.model_dim,
            c.timenorm_num_groups,
            self.build.slots,
            c.chunk_size,
            (c.timenorm_beta1, c.timenorm_beta2),
            c.norm_eps,
        )
