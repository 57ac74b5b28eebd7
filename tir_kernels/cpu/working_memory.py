"""Adaptive working memory (specification 2.7): the read of every token, the write at a chunk's end."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear
from gecko_mlc.tir_kernels.expressions import exp, loader
from gecko_mlc.tir_kernels.hardware import CPU, divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import Window
from gecko_mlc.tir_kernels.value_cache import value_loader


@functools.cache
def read(phase: Phase, window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (weights [n, Z], sca [n, E], gate [n, E], slots, position, memory [S, H, dz, dv])
    → y [n, E] = sca ⊙ gate + weights · memory (the merge of 2.8), all fp32.

    The first two chunks find an empty memory and do not read it.
    """
    heads, dz, dv = window.heads, window.head_dim, window.value_head_dim
    width = hardware.width(dv)
    # One row takes long runs of memory, several share what is loaded.
    tile, most = (1, hardware.registers // 4) if phase is Phase.DECODE else (hardware.registers // 4, 2)
    vectors = math.gcd(dv // width, most)
    columns = width * vectors

    @kernel
    def compute(
        weights_handle: T.handle,
        sca_handle: T.handle,
        gate_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        memory: T.Buffer(window.memory, "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        weights = T.match_buffer(weights_handle, (n, window.z_dim), "float32")
        sca = T.match_buffer(sca_handle, (n, window.value_dim), "float32")
        gate = T.match_buffer(gate_handle, (n, window.value_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        y = T.match_buffer(y_handle, (n, window.value_dim), "float32")
        for task in T.parallel(divide(n, tile) * heads * (dv // columns)):
            sums = T.alloc_buffer((tile, columns))
            first: T.let = task // (heads * (dv // columns)) * tile
            h: T.let = task // (dv // columns) % heads
            column: T.let = task % (dv // columns) * columns
            slot: T.let = slot_ids[phase.sequence(first)]
            clear(sums, tile, columns)
            for a in T.serial(T.Select(position[slot, 0] >= 2, dz, 0)):
                for i in T.unroll(tile):
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(width):
                            sums[i, v * width + lane] = (
                                sums[i, v * width + lane]
                                + weights[T.min(first + i, n - 1), h * dz + a]
                                * memory[slot, h, a, column + v * width + lane]
                            )
            for i in T.serial(T.min(tile, n - first)):
                for lane in T.vectorized(columns):
                    y[first + i, h * dv + column + lane] = (
                        sca[first + i, h * dv + column + lane] * gate[first + i, h * dv + column + lane] + sums[i, lane]
                    )

    return compute


@functools.cache
def write_weights(window: Window) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory_keys [S, 2, C, Z], log_norm [S, H, dz])
    → kappa [b, H, C, dz], shares [b, H, C, dz], rho [b, H, dz].

    Of the chunk before the one that ends: softmax over features, softmax over positions, and the part of
    the accumulated mass; `log_norm` is updated in place. Does nothing at the end of chunk 0.
    """
    heads, chunk_size, dz = window.heads, window.chunk_size, window.head_dim
    load = loader(window.key_dtype)

    @kernel
    def compute(
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        keys: T.Buffer(window.keys, window.key_dtype),
        log_norm: T.Buffer(window.log_norm, "float32"),
        kappa_handle: T.handle,
        shares_handle: T.handle,
        rho_handle: T.handle,
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        kappa = T.match_buffer(kappa_handle, (b, heads, chunk_size, dz), "float32")
        shares = T.match_buffer(shares_handle, (b, heads, chunk_size, dz), "float32")
        rho = T.match_buffer(rho_handle, (b, heads, dz), "float32")
        for task in T.parallel(b * heads):
            maximum = T.alloc_buffer((dz,), "float32")
            total = T.alloc_buffer((dz,), "float32")
            row = T.alloc_buffer((2,))
            i: T.let = task // heads
            h: T.let = task % heads
            slot: T.let = slot_ids[i]
            if position[slot, 0] >= 1:
                parity: T.let = (position[slot, 0] + 1) % 2
                for a in T.serial(dz):
                    maximum[a] = load(keys, slot, parity, 0, h * dz + a)
                    total[a] = T.float32(0)
                for j in T.serial(chunk_size):
                    row[0] = load(keys, slot, parity, j, h * dz)
                    for a in T.serial(dz):
                        row[0] = T.max(row[0], load(keys, slot, parity, j, h * dz + a))
                        maximum[a] = T.max(maximum[a], load(keys, slot, parity, j, h * dz + a))
                    for a in T.serial(dz):
                        kappa[i, h, j, a] = exp(load(keys, slot, parity, j, h * dz + a) - row[0])
                    row[1] = T.float32(0)
                    for a in T.serial(dz):
                        row[1] = row[1] + kappa[i, h, j, a]
                    for a in T.serial(dz):
                        kappa[i, h, j, a] = kappa[i, h, j, a] / row[1]
                for j in T.serial(chunk_size):
                    for a in T.serial(dz):
                        shares[i, h, j, a] = exp(load(keys, slot, parity, j, h * dz + a) - maximum[a])
                    for a in T.serial(dz):
                        total[a] = total[a] + shares[i, h, j, a]
                for j in T.serial(chunk_size):
                    for a in T.serial(dz):
                        shares[i, h, j, a] = shares[i, h, j, a] / total[a]
                for a in T.serial(dz):
                    # ln λ, then ℓ' = logaddexp(ℓ, ln λ) and ρ = exp(ln λ − ℓ').
                    total[a] = maximum[a] + T.log(total[a])
                    maximum[a] = T.max(total[a], log_norm[slot, h, a])
                    log_norm[slot, h, a] = maximum[a] + T.log(
                        exp(total[a] - maximum[a]) + exp(log_norm[slot, h, a] - maximum[a])
                    )
                    rho[i, h, a] = exp(total[a] - log_norm[slot, h, a])

    return compute


@functools.cache
def write(window: Window, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (kappa, shares [b, H, C, dz], rho [b, H, dz], slots [b], position, values [S, 2, C, E],
    value_scales [S, 2, C, H] of int8 values, memory [S, H, dz, dv]): the delta rule, `memory` updated in place.
    Does nothing at the end of chunk 0.
    """
    heads, chunk_size, dz, dv = window.heads, window.chunk_size, window.head_dim, window.value_head_dim
    width = hardware.width(dv)
    vectors = 2 if dv % (2 * width) == 0 else 1
    columns = width * vectors
    # Positions, and then features, that share a register tile.
    tile = hardware.registers // 4
    position_tile, feature_tile = (_divisor(extent, tile) for extent in (chunk_size, dz))

    load = value_loader(window.value_dtype)

    @kernel(value_scales=window.scaled)
    def compute(
        kappa_handle: T.handle,
        shares_handle: T.handle,
        rho_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        values: T.Buffer(window.values, window.value_dtype),
        value_scales: T.Buffer(window.value_scales, "float32"),
        memory: T.Buffer(window.memory, "float32"),
    ):
        b = T.int32()
        kappa = T.match_buffer(kappa_handle, (b, heads, chunk_size, dz), "float32")
        shares = T.match_buffer(shares_handle, (b, heads, chunk_size, dz), "float32")
        rho = T.match_buffer(rho_handle, (b, heads, dz), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        for task in T.parallel(b * heads * (dv // columns)):
            error = T.alloc_buffer((chunk_size, columns), "float32")
            i: T.let = task // (heads * (dv // columns))
            h: T.let = task // (dv // columns) % heads
            column: T.let = task % (dv // columns) * columns
            slot: T.let = slot_ids[i]
            if position[slot, 0] >= 1:
                parity: T.let = (position[slot, 0] + 1) % 2
                # 1. What the memory does not predict yet: e = v − κᵀ M.
                for block in T.serial(chunk_size // position_tile):
                    sums = T.alloc_buffer((position_tile, columns))
                    clear(sums, position_tile, columns)
                    for a in T.serial(dz):
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
                                    h * dv + column + lane,
                                )
                                - sums[j, lane]
                            )
                # 2. M ← (1 − ρ) M + ρ U with U = sharesᵀ e.
                for block in T.serial(dz // feature_tile):
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

    return compute


def _divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` up to `limit`."""
    return max(d for d in range(1, limit + 1) if extent % d == 0)
