"""Timestep decay norm (specification 2.2) and complex exponential moving average (2.3) of one token, for CUDA."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.decode.timestep_norm import load_average, update_moments
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import launch_dependents, wait_for_predecessor, warp_sum
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, quantized_row, row_shape
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_vectors
from gecko_mlc.tir_kernels.expressions import f32
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import EMA, TimestepNorm

# Threads that have channels of a group side by side.
COLUMNS = 256


def quantized_output(norm: TimestepNorm, norm_groups: int, matrices: Matrices) -> QuantizedRow | None:
    """How `norm_ema` quantizes what it makes, for GEMVs behind a norm of `norm_groups`: of one group, as its sum of
    squares is taken from all blocks, and a block's channels all at once."""
    size = norm.dim // norm.groups
    if norm_groups > 1 or size > math.gcd(size, 4) * COLUMNS:
        return None
    return quantized_row(norm.dim, size, matrices.weights, matrices.rows, norm.groups)


@functools.cache
def norm_ema(
    norm: TimestepNorm, ema_shape: EMA, outgoing: QuantizedRow | None = None, affine: bool = False
) -> tirx.PrimFunc:
    """Kernel (x [b, D], weight [D], bias [D], coefficients [5, N, D], slots [b], position, mean [S, G], var [S, G],
    ema [S, 2, N, D], norm weight [D] if affine) → u [b, D], c [b, D].

    One token for each of b slots, all fp32: u is its timestep norm and c = u + EMA. `mean`, `var` and `ema` of the
    slots are updated in place. Both may be quantized (`outgoing`): c then is times the gain of the norm after it,
    and comes with the squares that the norm needs.
    """
    dim, groups, components, slots = norm.dim, norm.groups, ema_shape.components, norm.slots
    size = dim // groups
    # A block is a group: `columns` threads side by side with a vector of channels each, `parts` of the components.
    width = math.gcd(size, 4)
    vectors = size // width
    columns = min(vectors, COLUMNS)
    parts = min(components, 512 // columns)
    threads = -(-columns * parts // 32) * 32
    tiles = -(-vectors // columns)
    rounds = -(-components // parts)
    row_width, row_dtype = row_shape(dim, outgoing)
    # Of the groups of a tile: partial sums by component, then, if they are quantized, u, and the squares by warp.
    entered, squares = parts * columns * width, (parts + 1) * columns * width
    scratch = entered if outgoing is None else squares + threads // 32
    # Of rows that are quantized: a block's vectors, what quantizes them, and rounds of its threads over their channels.
    block_vectors = size // outgoing.codes if outgoing is not None else 0
    quantize = quantize_vectors(outgoing, block_vectors, threads) if outgoing is not None else None
    gain_rounds = -(-size // threads) if outgoing is not None else 0
    last = threads - 1

    @kernel(norm_weight=affine)
    def step(
        x_handle: T.handle,
        weight: T.Buffer((dim,), "float32"),
        bias: T.Buffer((dim,), "float32"),
        coefficients: T.Buffer((5, components, dim), "float32"),
        slots_handle: T.handle,
        position: T.Buffer((slots, 2), "int32"),
        mean: T.Buffer((slots, groups), "float32"),
        var: T.Buffer((slots, groups), "float32"),
        ema: T.Buffer((slots, 2, components, dim), "float32"),
        norm_weight: T.Buffer((dim,), "float32"),
        u_handle: T.handle,
        c_handle: T.handle,
    ):
        b = T.int32()
        x = T.match_buffer(x_handle, (b, dim), "float32")
        u = T.match_buffer(u_handle, (b, row_width), row_dtype)
        c = T.match_buffer(c_handle, (b, row_width), row_dtype)
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        group = T.launch_thread("blockIdx.x", groups)
        row = T.launch_thread("blockIdx.y", b)
        tx = T.launch_thread("threadIdx.x", threads)
        average = T.alloc_buffer((4,), scope="local")
        moments = T.alloc_buffer((3,), scope="local")
        q = T.alloc_buffer((5, width), scope="local")
        h = T.alloc_buffer((2, width), scope="local")
        scale = T.alloc_buffer((2, width), scope="local")
        entering = T.alloc_buffer((width,), scope="local")
        new = T.alloc_buffer((2, width), scope="local")
        total = T.alloc_buffer((width,), scope="local")
        totals = T.alloc_buffer((scratch,), scope="shared")
        gains = T.alloc_buffer((max(1, gain_rounds),), scope="local")
        square = T.alloc_buffer((1,), scope="local")
        column: T.let = tx % columns
        part: T.let = tx // columns

        @T.inline
        def load_parameters(tile, round_):
            if tile * columns + column < vectors:
                for v in T.vectorized(width):
                    scale[0, v] = T.float32(1) + weight[group * size + (tile * columns + column) * width + v]
                for v in T.vectorized(width):
                    scale[1, v] = bias[group * size + (tile * columns + column) * width + v]
                load_coefficients(tile, round_)

        @T.inline
        def load_input(tile):
            if tile * columns + column < vectors:
                for v in T.vectorized(width):
                    entering[v] = x[row, group * size + (tile * columns + column) * width + v]

        @T.inline
        def load_state(tile, round_, slot):
            if tile * columns + column < vectors and round_ * parts + part < components:
                for k in T.unroll(2):
                    for v in T.vectorized(width):
                        h[k, v] = ema[
                            slot, k, round_ * parts + part, group * size + (tile * columns + column) * width + v
                        ]

        @T.inline
        def load_coefficients(tile, round_):
            if round_ * parts + part < components:
                for k in T.unroll(5):
                    for v in T.vectorized(width):
                        q[k, v] = coefficients[
                            k, round_ * parts + part, group * size + (tile * columns + column) * width + v
                        ]

        launch_dependents()
        # The first of the parameters and of the state, in the usual sizes all, arrive while the predecessor ends.
        load_parameters(0, 0)
        # The host names the slots, before any launch.
        slot: T.let = slot_ids[row]
        load_state(0, 0, slot)
        load_average(average, group, slot, position, norm, mean, var)
        for k in T.unroll(gain_rounds):
            if k * threads + tx < size:
                gains[k] = f32(1) + norm_weight[group * size + k * threads + tx] if affine else f32(1)
        wait_for_predecessor()
        load_input(0)
        update_moments(moments, x, row, group, size, tx % 32, average, norm.eps)
        for tile in T.serial(tiles):
            if tile > 0:
                load_parameters(tile, 0)
                load_input(tile)
                load_state(tile, 0, slot)
            for v in T.vectorized(width):
                total[v] = T.float32(0)
            if tile * columns + column < vectors and part < parts:
                d: T.let = group * size + (tile * columns + column) * width
                for v in T.vectorized(width):
                    entering[v] = (entering[v] - moments[0]) * moments[2] * scale[0, v] + scale[1, v]
                if part == 0:
                    if outgoing is None:
                        for v in T.vectorized(width):
                            u[row, d + v] = entering[v]
                    else:
                        for v in T.vectorized(width):
                            totals[entered + column * width + v] = entering[v]
                    for v in T.vectorized(width):
                        total[v] = entering[v]
                for round_ in T.serial(rounds):
                    if round_ > 0:
                        load_coefficients(tile, round_)
                        load_state(tile, round_, slot)
                    if round_ * parts + part < components:
                        j: T.let = round_ * parts + part
                        for v in T.unroll(width):
                            new[0, v] = q[0, v] * h[0, v] - q[1, v] * h[1, v] + q[2, v] * entering[v]
                            new[1, v] = q[0, v] * h[1, v] + q[1, v] * h[0, v]
                            total[v] = total[v] + (q[3, v] * new[0, v] - q[4, v] * new[1, v])
                        for k in T.unroll(2):
                            for v in T.vectorized(width):
                                ema[slot, k, j, d + v] = new[k, v]
                for v in T.vectorized(width):
                    totals[part * columns * width + column * width + v] = total[v]
            T.tvm_storage_sync("shared")

            @T.inline
            def add_parts(i):
                total[0] = T.float32(0)
                for p in T.unroll(parts):
                    total[0] = total[0] + totals[p * columns * width + i]

            if outgoing is None:
                for k in T.serial((columns * width + threads - 1) // threads):
                    i: T.let = k * threads + tx
                    if i < columns * width and tile * columns * width + i < size:
                        add_parts(i)
                        c[row, group * size + tile * columns * width + i] = total[0]
                if tiles > 1:
                    T.tvm_storage_sync("shared")
            else:
                # The last threads quantize u meanwhile.
                quantize(totals, entered, group * block_vectors, block_vectors, u, row, last - tx)
                square[0] = T.float32(0)
                for k in T.unroll(gain_rounds):
                    if k * threads + tx < size:
                        add_parts(k * threads + tx)
                        square[0] = square[0] + total[0] * total[0]
                        totals[k * threads + tx] = total[0] * gains[k]
                square[0] = warp_sum(square[0])
                if tx % 32 == 0:
                    totals[squares + tx // 32] = square[0]
                T.tvm_storage_sync("shared")
                quantize(totals, 0, group * block_vectors, block_vectors, c, row, tx)
                if tx == last:
                    total[0] = T.float32(0)
                    for warp in T.unroll(threads // 32):
                        total[0] = total[0] + totals[squares + warp]
                    c[row, outgoing.floats(3) + group] = T.reinterpret("uint32", total[0])
        if tx == 0:
            mean[slot, group] = moments[0]
            var[slot, group] = moments[1]

    return step
