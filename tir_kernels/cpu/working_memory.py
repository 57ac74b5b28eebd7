"""Adaptive working memory (specification 2.7): the read of every token, the write at a chunk's end."""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear
from gecko_mlc.tir_kernels.cpu.value_cache import value_loader, without_scales
from gecko_mlc.tir_kernels.expressions import exp, loader
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.phase import Phase

Expr = Any


@functools.cache
def read(phase: Phase, z_dim: int, value_dim: int, heads: int, slots: int, machine: CPU) -> tirx.PrimFunc:
    """Kernel (weights [n, Z], sca [n, E], gate [n, E], slots, position, memory [S, H, dz, dv])
    → y [n, E] = sca ⊙ gate + weights · memory (the merge of 2.8), all fp32.

    The first two chunks find an empty memory and do not read it.
    """
    size, value_size = z_dim // heads, value_dim // heads
    width = machine.width(value_size)
    # One row takes long runs of memory, several share what is loaded.
    tile, most = (1, machine.registers // 4) if phase is Phase.DECODE else (machine.registers // 4, 2)
    vectors = math.gcd(value_size // width, most)
    columns = width * vectors

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        weights_handle: T.handle,
        sca_handle: T.handle,
        gate_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        memory: T.Buffer((slots, heads, size, value_size), "float32"),
        y_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        weights = T.match_buffer(weights_handle, (n, z_dim), "float32")
        sca = T.match_buffer(sca_handle, (n, value_dim), "float32")
        gate = T.match_buffer(gate_handle, (n, value_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        y = T.match_buffer(y_handle, (n, value_dim), "float32")
        for task in T.parallel(divide(n, tile) * heads * (value_size // columns)):
            sums = T.alloc_buffer((tile, columns))
            first: T.let = task // (heads * (value_size // columns)) * tile
            h: T.let = task // (value_size // columns) % heads
            column: T.let = task % (value_size // columns) * columns
            slot: T.let = slot_ids[phase.sequence(first)]
            clear(sums, tile, columns)
            for a in T.serial(T.Select(position[slot, 0] >= 2, size, 0)):
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(width):
                            sums[i, v * width + lane] = (
                                sums[i, v * width + lane]
                                + weights[T.min(first + i, n - 1), h * size + a]
                                * memory[slot, h, a, column + v * width + lane]
                            )
            for i in T.serial(T.min(tile, n - first)):
                for lane in T.vectorized(columns):
                    y[first + i, h * value_size + column + lane] = (
                        sca[first + i, h * value_size + column + lane] * gate[first + i, h * value_size + column + lane]
                        + sums[i, lane]
                    )

    return kernel


@functools.cache
def write_weights(z_dim: int, heads: int, slots: int, chunk_size: int, cache_dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory_keys [S, 2, C, Z], log_norm [S, H, dz])
    → kappa [b, H, C, dz], shares [b, H, C, dz], rho [b, H, dz].

    Of the chunk before the one that ends: softmax over features, softmax over positions, and the part of
    the accumulated mass; `log_norm` is updated in place. Does nothing at the end of chunk 0.
    """
    size = z_dim // heads

    load = loader(cache_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), cache_dtype),
        log_norm: T.Buffer((slots, heads, size), "float32"),
        kappa_handle: T.handle,
        shares_handle: T.handle,
        rho_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        kappa = T.match_buffer(kappa_handle, (b, heads, chunk_size, size), "float32")
        shares = T.match_buffer(shares_handle, (b, heads, chunk_size, size), "float32")
        rho = T.match_buffer(rho_handle, (b, heads, size), "float32")
        for task in T.parallel(b * heads):
            maximum = T.alloc_buffer((size,), "float32")
            total = T.alloc_buffer((size,), "float32")
            row = T.alloc_buffer((2,))
            i: T.let = task // heads
            h: T.let = task % heads
            slot: T.let = slot_ids[i]
            if position[slot, 0] >= 1:
                parity: T.let = (position[slot, 0] + 1) % 2
                for a in T.serial(size):
                    maximum[a] = load(keys, slot, parity, 0, h * size + a)
                    total[a] = T.float32(0)
                for j in T.serial(chunk_size):
                    row[0] = load(keys, slot, parity, j, h * size)
                    for a in T.serial(size):
                        row[0] = T.max(row[0], load(keys, slot, parity, j, h * size + a))
                        maximum[a] = T.max(maximum[a], load(keys, slot, parity, j, h * size + a))
                    for a in T.serial(size):
                        kappa[i, h, j, a] = exp(load(keys, slot, parity, j, h * size + a) - row[0])
                    row[1] = T.float32(0)
                    for a in T.serial(size):
                        row[1] = row[1] + kappa[i, h, j, a]
                    for a in T.serial(size):
                        kappa[i, h, j, a] = kappa[i, h, j, a] / row[1]
                for j in T.serial(chunk_size):
                    for a in T.serial(size):
                        shares[i, h, j, a] = exp(load(keys, slot, parity, j, h * size + a) - maximum[a])
                    for a in T.serial(size):
                        total[a] = total[a] + shares[i, h, j, a]
                for j in T.serial(chunk_size):
                    for a in T.serial(size):
                        shares[i, h, j, a] = shares[i, h, j, a] / total[a]
                for a in T.serial(size):
                    # ln λ, then ℓ' = logaddexp(ℓ, ln λ) and ρ = exp(ln λ − ℓ').
                    total[a] = maximum[a] + T.log(total[a])
                    maximum[a] = T.max(total[a], log_norm[slot, h, a])
                    log_norm[slot, h, a] = maximum[a] + T.log(
                        exp(total[a] - maximum[a]) + exp(log_norm[slot, h, a] - maximum[a])
                    )
                    rho[i, h, a] = exp(total[a] - log_norm[slot, h, a])

    return kernel


@functools.cache
def write(
    z_dim: int,
    value_dim: int,
    heads: int,
    slots: int,
    chunk_size: int,
    value_dtype: str,
    machine: CPU,
) -> tirx.PrimFunc:
    """Kernel (kappa, shares [b, H, C, dz], rho [b, H, dz], slots [b], position, values [S, 2, C, E],
    value_scales [S, 2, C, H] of int8 values, memory [S, H, dz, dv]): the delta rule, `memory` updated in place.
    Does nothing at the end of chunk 0.
    """
    size, value_size = z_dim // heads, value_dim // heads
    width = machine.width(value_size)
    vectors = 2 if value_size % (2 * width) == 0 else 1
    columns = width * vectors
    # Positions, and then features, that share a register tile.
    tile = machine.registers // 4
    position_tile, feature_tile = (_divisor(extent, tile) for extent in (chunk_size, size))

    load = value_loader(value_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        kappa_handle: T.handle,
        shares_handle: T.handle,
        rho_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        values: T.Buffer((slots, 2, chunk_size, value_dim), value_dtype),
        value_scales: T.Buffer((slots, 2, chunk_size, heads), "float32"),
        memory: T.Buffer((slots, heads, size, value_size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        kappa = T.match_buffer(kappa_handle, (b, heads, chunk_size, size), "float32")
        shares = T.match_buffer(shares_handle, (b, heads, chunk_size, size), "float32")
        rho = T.match_buffer(rho_handle, (b, heads, size), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        for task in T.parallel(b * heads * (value_size // columns)):
            error = T.alloc_buffer((chunk_size, columns), "float32")
            i: T.let = task // (heads * (value_size // columns))
            h: T.let = task // (value_size // columns) % heads
            column: T.let = task % (value_size // columns) * columns
            slot: T.let = slot_ids[i]
            if position[slot, 0] >= 1:
                parity: T.let = (position[slot, 0] + 1) % 2
                # 1. What the memory does not predict yet: e = v − κᵀ M.
                for block in T.serial(chunk_size // position_tile):
                    sums = T.alloc_buffer((position_tile, columns))
                    clear(sums, position_tile, columns)
                    for a in T.serial(size):
                        for j in T.unroll(position_tile):
                            for v in T.unroll(vectors):
                                for lane in T.vectorized(width):
                                    sums[j, v * width + lane] = (
                                        sums[j, v * width + lane]
                                        + kappa[i, h, block * position_tile + j, a]
                                        * memory[slot, h, a, column + v * width + lane]
                                    )
                    for j in T.serial(position_tile):
                        for lane in T.vectorized(columns):
                            error[block * position_tile + j, lane] = (
                                load(
                                    values,
                                    value_scales,
                                    h,
                                    slot,
                                    parity,
                                    block * position_tile + j,
                                    h * value_size + column + lane,
                                )
                                - sums[j, lane]
                            )
                # 2. M ← (1 − ρ) M + ρ U with U = sharesᵀ e.
                for block in T.serial(size // feature_tile):
                    update = T.alloc_buffer((feature_tile, columns))
                    clear(update, feature_tile, columns)
                    for j in T.serial(chunk_size):
                        for a in T.unroll(feature_tile):
                            for v in T.unroll(vectors):
                                for lane in T.vectorized(width):
                                    update[a, v * width + lane] = (
                                        update[a, v * width + lane]
                                        + shares[i, h, j, block * feature_tile + a] * error[j, v * width + lane]
                                    )
                    for a in T.serial(feature_tile):
                        for lane in T.vectorized(columns):
                            memory[slot, h, block * feature_tile + a, column + lane] = memory[
                                slot, h, block * feature_tile + a, column + lane
                            ] + rho[i, h, block * feature_tile + a] * (
                                update[a, lane] - memory[slot, h, block * feature_tile + a, column + lane]
                            )

    return without_scales(kernel, value_dtype)


def _divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` up to `limit`."""
    return max(d for d in range(1, limit + 1) if extent % d == 0)
