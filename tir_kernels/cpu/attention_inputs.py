"""From z to queries and keys (specification 2.4, 2.5 in the bounded form of 8b), and the window's caches.

Keys are cached rotated by their offset in the chunk; the query is rotated twice, for the keys of its own
chunk and, a chunk further, for those of the previous one.
"""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.value_cache import row_writer
from gecko_mlc.tir_kernels.expressions import Expr, exp, f32
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window


@functools.cache
def attention_inputs(phase: Phase, window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (z [n, Z], v [n, E], gamma [4, Z], beta [4, Z], cos, sin [2C, dz/2], slots, position,
    keys, values, value_scales [S, 2, C, H] of int8 values, memory_keys) → queries [n, 2, Z], read weights [n, Z].

    Rows of the caches, [S, 2, C, features] of `key_dtype` and `value_dtype`, are written at the tokens' offsets
    in the buffer of their chunk's parity. Read weights are softmax(aq) per head. All else is fp32.
    """
    heads, chunk_size = window.heads, window.chunk_size
    dz, half = window.head_dim, window.head_dim // 2
    scale = f32(1.0 / math.sqrt(dz))
    write_values = row_writer(window, hardware)

    def affine(which: int, z: Any, gamma: Any, beta: Any, rms: Any, i: Expr, a: Expr) -> Expr:
        """Feature a of q, k, aq or ak (0 to 3) of row i; rms[0] normalizes its head."""
        return z[i, a] * rms[0] * ((f32(1.0) + gamma[which, a]) * scale) + beta[which, a]

    @kernel(value_scales=window.scaled)
    def compute(
        z_handle: T.handle,
        v_handle: T.handle,
        gamma: T.Buffer((4, window.z_dim), "float32"),
        beta: T.Buffer((4, window.z_dim), "float32"),
        cos: T.Buffer((2 * chunk_size, half), "float32"),
        sin: T.Buffer((2 * chunk_size, half), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        memory_keys: T.Buffer(window.keys, window.key_dtype),
        queries_handle: T.handle,
        weights_handle: T.handle,
    ):
        n = T.int32()
        z = T.match_buffer(z_handle, (n, window.z_dim), "float32")
        v = T.match_buffer(v_handle, (n, window.value_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        queries = T.match_buffer(queries_handle, (n, 2, window.z_dim), "float32")
        weights = T.match_buffer(weights_handle, (n, window.z_dim), "float32")
        for i in T.parallel(n):
            rms = T.alloc_buffer((1,))
            pair = T.alloc_buffer((2,))
            slot: T.let = slot_ids[phase.sequence(i)]
            parity: T.let = position[slot, 0] % 2
            offset: T.let = position[slot, 1] + phase.token(i)
            write_values(v, i, values, value_scales, slot, parity, offset)
            for h in T.serial(heads):
                rms[0] = T.float32(0)
                for a in T.serial(dz):
                    rms[0] = rms[0] + z[i, h * dz + a] * z[i, h * dz + a]
                rms[0] = T.float32(1) / T.sqrt(rms[0] / T.float32(dz) + T.float32(window.eps))
                # aq and its softmax.
                for a in T.serial(dz):
                    weights[i, h * dz + a] = affine(2, z, gamma, beta, rms, i, h * dz + a)
                pair[0] = weights[i, h * dz]
                for a in T.serial(1, dz):
                    pair[0] = T.max(pair[0], weights[i, h * dz + a])
                pair[1] = T.float32(0)
                for a in T.serial(dz):
                    weights[i, h * dz + a] = exp(weights[i, h * dz + a] - pair[0])
                for a in T.serial(dz):
                    pair[1] = pair[1] + weights[i, h * dz + a]
                for a in T.serial(dz):
                    weights[i, h * dz + a] = weights[i, h * dz + a] / pair[1]
                for a in T.serial(dz):
                    memory_keys[slot, parity, offset, h * dz + a] = T.Cast(
                        window.key_dtype,
                        affine(3, z, gamma, beta, rms, i, h * dz + a),
                    )
                for j in T.serial(half):
                    for c in T.unroll(2):
                        pair[c] = affine(0, z, gamma, beta, rms, i, h * dz + 2 * j + c)
                    if h < window.rope_heads:
                        for chunk in T.unroll(2):
                            queries[i, chunk, h * dz + 2 * j] = (
                                pair[0] * cos[offset + chunk * chunk_size, j]
                                - pair[1] * sin[offset + chunk * chunk_size, j]
                            )
                            queries[i, chunk, h * dz + 2 * j + 1] = (
                                pair[0] * sin[offset + chunk * chunk_size, j]
                                + pair[1] * cos[offset + chunk * chunk_size, j]
                            )
                    else:
                        for chunk in T.unroll(2):
                            for c in T.unroll(2):
                                queries[i, chunk, h * dz + 2 * j + c] = pair[c]
                for j in T.serial(half):
                    for c in T.unroll(2):
                        pair[c] = affine(1, z, gamma, beta, rms, i, h * dz + 2 * j + c)
                    if h < window.rope_heads:
                        keys[slot, parity, offset, h * dz + 2 * j] = T.Cast(
                            window.key_dtype, pair[0] * cos[offset, j] - pair[1] * sin[offset, j]
                        )
                        keys[slot, parity, offset, h * dz + 2 * j + 1] = T.Cast(
                            window.key_dtype, pair[0] * sin[offset, j] + pair[1] * cos[offset, j]
                        )
                    else:
                        for c in T.unroll(2):
                            keys[slot, parity, offset, h * dz + 2 * j + c] = T.Cast(window.key_dtype, pair[c])

    return compute
