"""The write of the adaptive working memory (specification 2.7), spread over the next chunk's tokens (8c), for CUDA.

Both softmaxes of a chunk's keys are known when it ends: κ_ja = exp(ak_ja − log_sum_j) over features, and the shares
s_ja = exp(ak_ja − log_mass_a) over positions. The memory M does not change during the next chunk, so
U_a = Σ_j s_ja (v_j − κ_jᵀ M) = Σ_j s_ja v_j − Σ_b P_ba M_b with P_ba = Σ_j κ_jb s_ja. Tokens add to these two sums
over j, both in `memory_sum` [S, H, dz, dv + dz] with P in the last columns; M joins in at the chunk's end.

Positions are absorbed in tiles, tile k by the call that moves the offset to or past its end: the position tells which
ones were.
"""

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemm.mma import DEPTH
from gecko_mlc.tir_kernels.cuda.gemm.transposed import (
    ROWS,
    THREADS,
    place_of_a,
    place_of_b,
    plain_product,
    tensor_core_product,
)
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    RESIDENT_BLOCKS,
    copy_8_if,
    copy_16_if,
    device_function,
    launch_dependents,
    select_address,
    store_registers,
    wait_for_predecessor,
    warp_maximum,
    warp_sum,
)
from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.cuda.state.value_cache import widen_codes
from gecko_mlc.tir_kernels.expressions import MASKED, f32, loader
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.value_cache import value_loader, without_scales

Expr = Any

# Positions that are absorbed together.
TILE = 64

# e^x with 20 bits, and fewer where it is small: 16-bit results need no more.
_fast_exp = device_function(
    "gecko_fast_exp",
    "__device__ __forceinline__ float gecko_fast_exp(float x) { return __expf(x); }",
    "float32",
)


def _is_plain(size: int, value_size: int, dtype: str) -> bool:
    return dtype == "float32" or size % 8 != 0 or value_size % 8 != 0


def _absorb(z_dim: int, value_dim: int, heads: int, chunk_size: int, dtype: str, value_dtype: str):  # type: ignore[no-untyped-def]
    """An inline (slots, position, keys, values, value_scales, log_mass, log_sum, memory_sum, n, b, waits): the tiles
    that n tokens of each of b slots complete.

    A block adds to some rows and columns. The columns of P, the first blocks', are sᵀ times κ, summed as κᵀ times s.
    """
    size, value_size = z_dim // heads, value_dim // heads
    plain = _is_plain(size, value_size, dtype)
    product = plain_product() if plain else tensor_core_product(dtype)
    predictions = divide(size, product.columns)
    load, load_value = loader(dtype), value_loader(value_dtype)
    quantized = value_dtype == "int8"
    widen = None if plain else widen_codes(dtype)

    def exists(j: Expr, end: Expr) -> Expr:
        """Only the last tile of a chunk may have fewer positions."""
        return j < end if chunk_size % TILE else tirx.const(True, "bool")

    @T.inline
    def compute(slot_ids, position, keys, values, value_scales, log_mass, log_sum, memory_sum, n, b, waits):
        bx = T.launch_thread("blockIdx.x", predictions + divide(value_size, product.columns))
        by = T.launch_thread("blockIdx.y", divide(size, ROWS))
        bz = T.launch_thread("blockIdx.z", b * heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer((product.shared,), product.dtype, scope="shared.dyn")
        sums = T.alloc_buffer((product.sums,), scope="local")
        pair = T.alloc_buffer((2,), scope="local")
        held = T.alloc_buffer((8,), dtype, scope="local")
        held_log_mass = T.alloc_buffer((8,), scope="local")
        held_log_sum = T.alloc_buffer((2,), scope="local")
        held_scales = T.alloc_buffer((4,), scope="local")
        widened = T.alloc_buffer((4,), "uint32", scope="local")
        T.attr(0, RESIDENT_BLOCKS, 3)
        # No kernel writes the slots' numbers.
        slot: T.let = slot_ids[bz // heads]
        head: T.let = bz % heads
        predicts: T.let = bx < predictions
        copies_codes: T.let = bx >= predictions if quantized else tirx.const(False, "bool")
        first_row: T.let = by * ROWS
        first_column: T.let = T.Select(bx < predictions, bx, bx - predictions) * product.columns
        extent: T.let = T.Select(bx < predictions, size, value_size)
        # The first column's place in `memory_sum`.
        place: T.let = T.Select(
            bx < predictions, value_size + bx * product.columns, (bx - predictions) * product.columns
        )

        if waits:
            launch_dependents()
            wait_for_predecessor()
        parity: T.let = (position[slot, 0] + 1) % 2
        offset: T.let = position[slot, 1]
        begin: T.let = offset // TILE * TILE
        end: T.let = T.Select(offset + n >= chunk_size, chunk_size, (offset + n) // TILE * TILE)

        @T.inline
        def start(row, column, at):
            for v in T.unroll(product.width):
                sums[at + v] = T.float32(0)
            if begin > 0 and first_row + row < size and first_column + column < extent:
                for v in T.vectorized(product.width):
                    sums[at + v] = memory_sum[slot, head, first_row + row, place + column + v]

        @T.inline
        def finish(row, column, at):
            if first_row + row < size and first_column + column < extent:
                for v in T.vectorized(product.width):
                    memory_sum[slot, head, first_row + row, place + column + v] = sums[at + v]

        @T.inline
        def fetch(stage, step):
            # A copy of zeros reads nothing: its position need not exist.
            for i in T.unroll(2):
                j: T.let = begin + step * TILE + i * 32 + tx // 8
                row: T.let = first_row + tx % 8 * 8
                copy_16_if(
                    T.address_of(tiles[stage + place_of_a(i, tx)]),
                    T.address_of(keys[slot, parity, j, head * size + T.min(row, size - 8)]),
                    T.Cast("int32", exists(j, end) and row < size),
                )
                if predicts:
                    held_log_sum[i] = T.if_then_else(exists(j, end), log_sum[slot, head, j], T.float32(0))
            for i in T.unroll(4):
                j: T.let = begin + step * TILE + i * 16 + tx // 16
                column: T.let = first_column + tx % 16 * 8
                if copies_codes:
                    # Codes come to the first half of where their values will be.
                    copy_8_if(
                        T.address_of(tiles[stage + place_of_b(i, tx)]),
                        T.address_of(values[slot, parity, j, head * value_size + T.min(column, value_size - 8)]),
                        T.Cast("int32", exists(j, end) and column < extent),
                    )
                    held_scales[i] = T.if_then_else(exists(j, end), value_scales[slot, parity, j, head], T.float32(0))
                else:
                    copy_16_if(
                        T.address_of(tiles[stage + place_of_b(i, tx)]),
                        select_address(
                            predicts,
                            T.address_of(keys[slot, parity, j, head * size + T.min(column, size - 8)]),
                            T.address_of(values[slot, parity, j, head * value_size + T.min(column, value_size - 8)]),
                        ),
                        T.Cast("int32", exists(j, end) and column < extent),
                    )

        @T.inline
        def exponentiate(place, j, logarithm):
            """Keys become κ or shares where they lie; those of no position zeros."""
            for v in T.vectorized(8):
                held[v] = tiles[place + v]
            for v in T.unroll(8):
                held[v] = T.Cast(
                    dtype, T.if_then_else(exists(j, end), _fast_exp(load(held, v) - logarithm(v)), T.float32(0))
                )
            for v in T.vectorized(8):
                tiles[place + v] = held[v]

        @T.inline
        def prepare(stage, step):
            # Of the shares' columns, which are those of A or, for P, of B.
            column: T.let = T.Select(bx < predictions, first_column + tx % 16 * 8, first_row + tx % 8 * 8)
            for v in T.unroll(8):
                held_log_mass[v] = T.float32(0)
            if column < size:
                for k in T.unroll(2):
                    for v in T.vectorized(4):
                        held_log_mass[k * 4 + v] = log_mass[slot, head, column + k * 4 + v]
            for i in T.unroll(2):
                j: T.let = begin + step * TILE + i * 32 + tx // 8
                if predicts:
                    exponentiate(stage + place_of_a(i, tx), j, lambda _: held_log_sum[i])
                else:
                    exponentiate(stage + place_of_a(i, tx), j, lambda v: held_log_mass[v])
            if predicts:
                for i in T.unroll(4):
                    j: T.let = begin + step * TILE + i * 16 + tx // 16
                    exponentiate(stage + place_of_b(i, tx), j, lambda v: held_log_mass[v])
            if copies_codes:
                for i in T.unroll(4):
                    place: T.let = T.address_of(tiles[stage + place_of_b(i, tx)])
                    widen(T.address_of(widened[0]), place, held_scales[i])
                    store_registers(place, T.address_of(widened[0]))

        @T.inline
        def fill(k, step):
            j: T.let = begin + step * product.depth + k
            row: T.let = first_row + tx % ROWS
            column: T.let = first_column + tx % ROWS
            for v in T.unroll(2):
                pair[v] = T.float32(0)
            if j < end and row < size:
                pair[0] = T.exp(
                    load(keys, slot, parity, j, head * size + row)
                    - T.if_then_else(predicts, log_sum[slot, head, j], log_mass[slot, head, row])
                )
            if j < end and column < extent:
                if predicts:
                    pair[1] = T.exp(load(keys, slot, parity, j, head * size + column) - log_mass[slot, head, column])
                else:
                    pair[1] = load_value(values, value_scales, head, slot, parity, j, head * value_size + column)
            for v in T.unroll(2):
                tiles[(k * 2 + v) * ROWS + tx % ROWS] = pair[v]

        if position[slot, 0] >= 1 and begin < end:
            if plain:
                product.multiply(start, fill, divide(end - begin, product.depth), tiles, sums, tx)
            else:
                product.multiply(start, fetch, prepare, divide(end - begin, TILE), tiles, sums, tx)
            product.each(finish, tx)

    return compute


@functools.cache
def absorb_step(
    z_dim: int, value_dim: int, heads: int, slots: int, chunk_size: int, key_dtype: str, value_dtype: str
) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory_keys [S, 2, C, Z], values [S, 2, C, E], value_scales [S, 2, C, H] of int8
    values, log_mass [S, H, dz], log_sum [S, H, C], memory_sum [S, H, dz, dv + dz]).

    One token for each of b slots, at a position before `advance`. If it completes a tile, that tile of the previous
    chunk is added to `memory_sum`, which begins anew with a chunk's first tile. Caches are of `key_dtype` and
    `value_dtype`.
    """
    size, value_size = z_dim // heads, value_dim // heads
    compute = _absorb(z_dim, value_dim, heads, chunk_size, key_dtype, value_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        values: T.Buffer((slots, 2, chunk_size, value_dim), value_dtype),
        value_scales: T.Buffer((slots, 2, chunk_size, heads), "float32"),
        log_mass: T.Buffer((slots, heads, size), "float32"),
        log_sum: T.Buffer((slots, heads, chunk_size), "float32"),
        memory_sum: T.Buffer((slots, heads, size, value_size + size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        compute(slot_ids, position, keys, values, value_scales, log_mass, log_sum, memory_sum, 1, b, True)

    return without_scales(kernel, value_dtype)


@functools.cache
def absorb(
    dim: int, z_dim: int, value_dim: int, heads: int, slots: int, chunk_size: int, key_dtype: str, value_dtype: str
) -> tirx.PrimFunc:
    """Kernel (rows [n, D], slots [1], and the rest of `absorb_step`): the same for n tokens of one slot and chunk."""
    size, value_size = z_dim // heads, value_dim // heads
    compute = _absorb(z_dim, value_dim, heads, chunk_size, key_dtype, value_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        rows_handle: T.handle,
        slot_ids: T.Buffer((1,), "int32"),
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), key_dtype),
        values: T.Buffer((slots, 2, chunk_size, value_dim), value_dtype),
        value_scales: T.Buffer((slots, 2, chunk_size, heads), "float32"),
        log_mass: T.Buffer((slots, heads, size), "float32"),
        log_sum: T.Buffer((slots, heads, chunk_size), "float32"),
        memory_sum: T.Buffer((slots, heads, size, value_size + size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        _rows = T.match_buffer(rows_handle, (n, dim), "float32")
        compute(slot_ids, position, keys, values, value_scales, log_mass, log_sum, memory_sum, n, 1, False)

    return without_scales(kernel, value_dtype)


@functools.cache
def update(z_dim: int, value_dim: int, heads: int, slots: int, cache_dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory [S, H, dz, dv] of `cache_dtype`, memory_sum [S, H, dz, dv + dz]).

    At the end of a chunk: the first dv columns of `memory_sum` become U, as what the memory predicts is taken off. The
    memory is not read before there is one. Does nothing at the end of chunk 0.
    """
    size, value_size = z_dim // heads, value_dim // heads
    plain = _is_plain(size, value_size, cache_dtype)
    product = plain_product() if plain else tensor_core_product(cache_dtype)
    load = loader(cache_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        memory: T.Buffer((slots, heads, size, value_size), cache_dtype),
        memory_sum: T.Buffer((slots, heads, size, value_size + size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        bx = T.launch_thread("blockIdx.x", divide(value_size, product.columns))
        by = T.launch_thread("blockIdx.y", divide(size, ROWS))
        bz = T.launch_thread("blockIdx.z", b * heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        tiles = T.alloc_buffer((product.shared,), product.dtype, scope="shared.dyn")
        sums = T.alloc_buffer((product.sums,), scope="local")
        held = T.alloc_buffer((8,), scope="local")
        rounded = T.alloc_buffer((8,), cache_dtype, scope="local")
        slot: T.let = slot_ids[bz // heads]
        head: T.let = bz % heads
        first_row: T.let = by * ROWS
        first_column: T.let = bx * product.columns

        @T.inline
        def start(row, column, at):
            for v in T.unroll(product.width):
                sums[at + v] = T.float32(0)

        @T.inline
        def finish(row, column, at):
            if first_row + row < size and first_column + column < value_size:
                for v in T.vectorized(product.width):
                    memory_sum[slot, head, first_row + row, first_column + column + v] = (
                        memory_sum[slot, head, first_row + row, first_column + column + v] - sums[at + v]
                    )

        @T.inline
        def fetch(stage, step):
            for i in T.unroll(4):
                feature: T.let = step * DEPTH + i * 16 + tx // 16
                column: T.let = first_column + tx % 16 * 8
                copy_16_if(
                    T.address_of(tiles[stage + place_of_b(i, tx)]),
                    T.address_of(memory[slot, head, T.min(feature, size - 1), T.min(column, value_size - 8)]),
                    T.Cast("int32", feature < size and column < value_size),
                )

        @T.inline
        def prepare(stage, step):
            for i in T.unroll(2):
                feature: T.let = step * DEPTH + i * 32 + tx // 8
                row: T.let = first_row + tx % 8 * 8
                for v in T.unroll(8):
                    held[v] = T.float32(0)
                if feature < size and row < size:
                    for k in T.unroll(2):
                        for v in T.vectorized(4):
                            held[k * 4 + v] = memory_sum[slot, head, feature, value_size + row + k * 4 + v]
                for v in T.unroll(8):
                    rounded[v] = T.Cast(cache_dtype, held[v])
                for v in T.vectorized(8):
                    tiles[stage + place_of_a(i, tx) + v] = rounded[v]

        @T.inline
        def fill(k, step):
            feature: T.let = step * product.depth + k
            for v in T.unroll(2):
                held[v] = T.float32(0)
            if feature < size and first_row + tx % ROWS < size:
                held[0] = memory_sum[slot, head, feature, value_size + first_row + tx % ROWS]
            if feature < size and first_column + tx % ROWS < value_size:
                held[1] = load(memory, slot, head, feature, first_column + tx % ROWS)
            for v in T.unroll(2):
                tiles[(k * 2 + v) * ROWS + tx % ROWS] = held[v]

        if position[slot, 0] >= 2:
            if plain:
                product.multiply(start, fill, divide(size, product.depth), tiles, sums, tx)
            else:
                product.multiply(start, fetch, prepare, divide(size, DEPTH), tiles, sums, tx)
            product.each(finish, tx)

    return kernel


@functools.cache
def write(z_dim: int, value_dim: int, heads: int, slots: int, cache_dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [b], position, log_mass [S, H, dz], memory_sum [S, H, dz, dv + dz], log_norm [S, H, dz],
    memory [S, H, dz, dv] and, for 16-bit caches, memory_read [S, H, dz, dv] of `cache_dtype`).

    At the end of a chunk, ℓ ← logaddexp(ℓ, lnλ) and M ← (1 − ρ) M + ρ U (2.7); `memory_read` is M rounded. The first
    write reads neither ℓ nor M. Does nothing at the end of chunk 0.
    """
    size, value_size = z_dim // heads, value_dim // heads
    width = math.gcd(value_size, 4)
    rounds = divide(value_size, THREADS * width)
    convert = narrow(cache_dtype)

    @T.inline
    def compute(slot_ids, position, log_mass, memory_sum, log_norm, memory, memory_read, b):
        a = T.launch_thread("blockIdx.x", size)
        bz = T.launch_thread("blockIdx.y", b * heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        total = T.alloc_buffer((1,), scope="local")
        old = T.alloc_buffer((width,), scope="local")
        new = T.alloc_buffer((width,), scope="local")
        slot: T.let = slot_ids[bz // heads]
        head: T.let = bz % heads
        chunk: T.let = position[slot, 0]
        if chunk >= 1:
            own: T.let = log_mass[slot, head, a]
            total[0] = own
            if chunk >= 2:
                total[0] = T.max(own, log_norm[slot, head, a]) + T.log(
                    T.float32(1) + T.exp(T.float32(0) - T.abs(own - log_norm[slot, head, a]))
                )
            rho: T.let = T.exp(own - total[0])
            # All threads have read the old one.
            T.tvm_storage_sync("shared")
            if tx == 0:
                log_norm[slot, head, a] = total[0]
            for r in T.unroll(rounds):
                column: T.let = (r * THREADS + tx) * width
                if column < value_size:
                    for v in T.vectorized(width):
                        new[v] = memory_sum[slot, head, a, column + v]
                    if chunk >= 2:
                        for v in T.vectorized(width):
                            old[v] = memory[slot, head, a, column + v]
                        for v in T.unroll(width):
                            new[v] = old[v] + rho * (new[v] - old[v])
                    for v in T.vectorized(width):
                        memory[slot, head, a, column + v] = new[v]
                    if cache_dtype != "float32":
                        for v in T.vectorized(width):
                            memory_read[slot, head, a, column + v] = convert(new[v])

    # Parsing happens at definition: only the signature asked for is defined.
    if cache_dtype == "float32":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            slots_handle: T.handle,
            position: T.Buffer((slots, 2), "int32"),
            log_mass: T.Buffer((slots, heads, size), "float32"),
            memory_sum: T.Buffer((slots, heads, size, value_size + size), "float32"),
            log_norm: T.Buffer((slots, heads, size), "float32"),
            memory: T.Buffer((slots, heads, size, value_size), "float32"),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            slot_ids = T.match_buffer(slots_handle, (b,), "int32")
            compute(slot_ids, position, log_mass, memory_sum, log_norm, memory, memory, b)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            slots_handle: T.handle,
            position: T.Buffer((slots, 2), "int32"),
            log_mass: T.Buffer((slots, heads, size), "float32"),
            memory_sum: T.Buffer((slots, heads, size, value_size + size), "float32"),
            log_norm: T.Buffer((slots, heads, size), "float32"),
            memory: T.Buffer((slots, heads, size, value_size), "float32"),
            memory_read: T.Buffer((slots, heads, size, value_size), cache_dtype),
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            slot_ids = T.match_buffer(slots_handle, (b,), "int32")
            compute(slot_ids, position, log_mass, memory_sum, log_norm, memory, memory_read, b)

    return kernel


@functools.cache
def start_chunk(z_dim: int, heads: int, slots: int, chunk_size: int, cache_dtype: str) -> tirx.PrimFunc:
    """Kernel (slots [b], position, memory_keys [S, 2, C, Z] of `cache_dtype`, log_mass [S, H, dz], log_sum [S, H, C]).

    Of the chunk that has ended, which the next one absorbs: lnλ = ln Σ_j exp(ak_ja) of each feature, and
    ln Σ_a exp(ak_ja) of each position.
    """
    size = z_dim // heads
    # For lnλ, blocks of `lanes` vectors of features and `groups` positions at a time.
    width = math.gcd(size, 4 if cache_dtype == "float32" else 8)
    lanes = 4
    groups = THREADS // lanes
    loads = min(8, divide(chunk_size, groups))
    feature_blocks = divide(z_dim, lanes * width)
    # For the others, a warp for each position and head.
    warps, rounds = THREADS // 32, divide(size, 32)
    load = loader(cache_dtype)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        keys: T.Buffer((slots, 2, chunk_size, z_dim), cache_dtype),
        log_mass: T.Buffer((slots, heads, size), "float32"),
        log_sum: T.Buffer((slots, heads, chunk_size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        bx = T.launch_thread("blockIdx.x", feature_blocks + divide(heads * chunk_size, warps))
        by = T.launch_thread("blockIdx.y", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        maxima = T.alloc_buffer((groups, lanes * width), scope="shared")
        totals = T.alloc_buffer((groups, lanes * width), scope="shared")
        held = T.alloc_buffer((loads, width), cache_dtype, scope="local")
        maximum = T.alloc_buffer((width,), scope="local")
        total = T.alloc_buffer((width,), scope="local")
        row = T.alloc_buffer((rounds,), scope="local")
        slot: T.let = slot_ids[by]
        parity: T.let = position[slot, 0] % 2

        @T.inline
        def for_each(vector, body):
            """body(i, j) for all positions j of the thread, whose keys are in held[i]."""
            for step in T.serial(divide(chunk_size, groups * loads)):
                for i in T.unroll(loads):
                    for v in T.vectorized(width):
                        held[i, v] = keys[
                            slot,
                            parity,
                            T.min((step * loads + i) * groups + tx // lanes, chunk_size - 1),
                            vector * width + v,
                        ]
                for i in T.unroll(loads):
                    if (step * loads + i) * groups + tx // lanes < chunk_size:
                        for v in T.unroll(width):
                            body(i, v)

        @T.inline
        def find_maximum(i, v):
            maximum[v] = T.max(maximum[v], load(held, i, v))

        @T.inline
        def add(i, v):
            total[v] = total[v] + T.exp(load(held, i, v) - maximum[v])

        if bx < feature_blocks:
            vector: T.let = T.min(bx * lanes + tx % lanes, z_dim // width - 1)
            for v in T.unroll(width):
                maximum[v] = f32(MASKED)
                total[v] = T.float32(0)
            for_each(vector, find_maximum)
            for v in T.unroll(width):
                maxima[tx // lanes, tx % lanes * width + v] = maximum[v]
            T.tvm_storage_sync("shared")
            for v in T.unroll(width):
                for group in T.serial(groups):
                    maximum[v] = T.max(maximum[v], maxima[group, tx % lanes * width + v])
            for_each(vector, add)
            for v in T.unroll(width):
                totals[tx // lanes, tx % lanes * width + v] = total[v]
            T.tvm_storage_sync("shared")
            if tx < lanes and bx * lanes + tx < z_dim // width:
                for v in T.unroll(width):
                    total[v] = T.float32(0)
                    for group in T.serial(groups):
                        total[v] = total[v] + totals[group, tx * width + v]
                    log_mass[slot, (vector * width + v) // size, (vector * width + v) % size] = maximum[v] + T.log(
                        total[v]
                    )
        else:
            task: T.let = (bx - feature_blocks) * warps + tx // 32
            head: T.let = task % heads
            j: T.let = task // heads
            if j < chunk_size:
                maximum[0] = f32(MASKED)
                total[0] = T.float32(0)
                for r in T.unroll(rounds):
                    row[r] = f32(MASKED)
                    if r * 32 + tx % 32 < size:
                        row[r] = load(keys, slot, parity, j, head * size + r * 32 + tx % 32)
                    maximum[0] = T.max(maximum[0], row[r])
                maximum[0] = warp_maximum(maximum[0])
                for r in T.unroll(rounds):
                    total[0] = total[0] + T.exp(row[r] - maximum[0])
                total[0] = warp_sum(total[0])
                if tx % 32 == 0:
                    log_sum[slot, head, j] = maximum[0] + T.log(total[0])

    return kernel
