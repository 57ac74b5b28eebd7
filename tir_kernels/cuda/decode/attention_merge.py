"""The end of a decoded token's attention, for CUDA: its parts joined, the read of the working memory (specification
2.7) and their merge (2.8)."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.decode.attention_window import part_length, parts, visible_positions
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import (
    lane_sum,
    launch_dependents,
    wait_for_predecessor,
    warp_maximum,
    warp_sum,
)
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, quantized_row, row_shape
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_vectors
from gecko_mlc.tir_kernels.expressions import MASKED, affine, f32, loader
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window

THREADS = 256
# Vectors of the memory that a thread has on their way, and columns that make enough blocks.
LOADS, BLOCKS = 8, 264


def _columns(window: Window) -> tuple[int, int]:
    """Vectors of columns of a block, and columns of a vector."""
    width = math.gcd(window.value_head_dim, 4 if window.key_dtype == "float32" else 8)
    return 8 if window.value_head_dim // width * window.heads >= 8 * BLOCKS // 2 else 4, width


def quantized_output(window: Window, matrices: Matrices) -> QuantizedRow | None:
    """How `merge` quantizes what it makes, for a GEMV."""
    block_features = math.gcd(window.value_head_dim, math.prod(_columns(window)))
    return quantized_row(window.value_dim, block_features, matrices.weights, matrices.rows)


@functools.cache
def merge(window: Window, outgoing: QuantizedRow | None = None) -> tirx.PrimFunc:
    """Kernel (z [b, Z], gamma [4, Z], beta [4, Z], partial [b, H, P, dv], statistics [b, H, P, 2], r [b, E],
    slots [b], position, memory [S, H, dz, dv]) → y [b, E] = attention ⊙ r + softmax(aq) · memory.

    `partial` and `statistics` are those of `attend`. The memory is of the keys' dtype, all else fp32, or y quantized
    (`outgoing`).
    """
    z_dim, value_dim, heads, chunk_size = window.z_dim, window.value_dim, window.heads, window.chunk_size
    size, value_size, dtype = window.head_dim, window.value_head_dim, window.key_dtype
    count = parts(chunk_size, heads)
    # A block has `lanes` vectors of columns of a head; `groups` rows of the memory, or parts, at a time.
    lanes, width = _columns(window)
    part = math.gcd(width, 4)
    vectors = value_size // width
    row_width, row_dtype = row_shape(value_dim, outgoing)
    groups, warps = THREADS // lanes, THREADS // 32
    half = warps // 2
    tiles = -(-vectors // lanes)
    part_loads = min(-(-count // groups), LOADS // 2)
    memory_loads = min(-(-size // groups), LOADS)
    rounds, statistic_rounds = -(-size // 32), -(-count // 32)
    load, group_sum = loader(dtype), lane_sum(32 // lanes, lanes)

    @kernel
    def merge_parts(
        z_handle: T.handle,
        gamma: T.Buffer((4, z_dim), "float32"),
        beta: T.Buffer((4, z_dim), "float32"),
        partial_handle: T.handle,
        statistics_handle: T.handle,
        r_handle: T.handle,
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        memory: T.Buffer(window.memory, dtype),
        y_handle: T.handle,
    ):
        b = T.int32()
        z = T.match_buffer(z_handle, (b, z_dim), "float32")
        partial = T.match_buffer(partial_handle, (b, heads, count, value_size), "float32")
        statistics = T.match_buffer(statistics_handle, (b, heads, count, 2), "float32")
        gate = T.match_buffer(r_handle, (b, value_dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        y = T.match_buffer(y_handle, (b, row_width), row_dtype)
        tile = T.launch_thread("blockIdx.x", tiles)
        head = T.launch_thread("blockIdx.y", heads)
        row = T.launch_thread("blockIdx.z", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        part_weights = T.alloc_buffer((count,), scope="shared")
        read_weights = T.alloc_buffer((size,), scope="shared")
        totals = T.alloc_buffer((warps * lanes * width,), scope="shared")
        gains = T.alloc_buffer((rounds,), scope="local")
        shifts = T.alloc_buffer((rounds,), scope="local")
        aq = T.alloc_buffer((rounds,), scope="local")
        scale = T.alloc_buffer((1,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        total = T.alloc_buffer((1,), scope="local")
        weight = T.alloc_buffer((1,), scope="local")
        held_memory = T.alloc_buffer((memory_loads, width), dtype, scope="local")
        held_partial = T.alloc_buffer((part_loads, width), scope="local")
        held_statistics = T.alloc_buffer((statistic_rounds, 2), scope="local")
        held_gate = T.alloc_buffer((width,), scope="local")
        sums = T.alloc_buffer((width,), scope="local")
        lane: T.let = tx % 32
        warp: T.let = tx // 32
        group: T.let = tx // lanes
        column: T.let = (tile * lanes + tx % lanes) * width

        launch_dependents()
        for k in T.unroll(rounds):
            if warp >= half and k * 32 + lane < size:
                gains[k] = gamma[2, head * size + k * 32 + lane]
                shifts[k] = beta[2, head * size + k * 32 + lane]
        # The host names the slots, before any launch.
        slot: T.let = slot_ids[row]
        visible: T.let = visible_positions(position[slot, 0], position[slot, 1], chunk_size)
        length: T.let = part_length(visible, count)
        present: T.let = (visible + length - 1) // length
        # The memory is zero in the first two chunks.
        features: T.let = T.Select(position[slot, 0] >= 2, size, 0)

        @T.inline
        def load_memory(i, a):
            """held_memory[i] = a vector of feature a's row."""
            if a < size and column < value_size:
                for v in T.vectorized(width):
                    held_memory[i, v] = memory[slot, head, a, column + v]

        @T.inline
        def load_partial(i, j):
            """held_partial[i] = a vector of part j."""
            if j < count and column < value_size:
                for k in T.unroll(width // part):
                    for v in T.vectorized(part):
                        held_partial[i, k * part + v] = partial[row, head, j, column + k * part + v]

        # 1. The memory arrives while the predecessor ends, then all else, at once. What does not exist is loaded too,
        # but not used.
        for i in T.unroll(memory_loads):
            for v in T.unroll(width):
                held_memory[i, v] = T.Cast(dtype, T.float32(0))
            load_memory(i, i * groups + group)
        wait_for_predecessor()
        for k in T.unroll(statistic_rounds):
            if warp < half and k * 32 + lane < count:
                for v in T.vectorized(2):
                    held_statistics[k, v] = statistics[row, head, k * 32 + lane, v]
        for k in T.unroll(rounds):
            if warp >= half and k * 32 + lane < size:
                aq[k] = z[row, head * size + k * 32 + lane]
        for i in T.unroll(part_loads):
            for v in T.unroll(width):
                held_partial[i, v] = T.float32(0)
            load_partial(i, i * groups + group)
        if column < value_size:
            for k in T.unroll(width // part):
                for v in T.vectorized(part):
                    held_gate[k * part + v] = gate[row, head * value_size + column + k * part + v]

        # 2. Weights of the parts, by half of the warps, and of the memory's rows. Every warp has all, and writes some.
        if warp < half:
            maximum[0] = f32(MASKED)
            for k in T.unroll(statistic_rounds):
                if k * 32 + lane < present:
                    maximum[0] = T.max(maximum[0], held_statistics[k, 0])
            maximum[0] = warp_maximum(maximum[0])
            total[0] = T.float32(0)
            for k in T.unroll(statistic_rounds):
                if k * 32 + lane < present:
                    held_statistics[k, 0] = T.exp(held_statistics[k, 0] - maximum[0])
                    total[0] = total[0] + held_statistics[k, 1] * held_statistics[k, 0]
            total[0] = T.float32(1) / warp_sum(total[0])
            for k in T.unroll(statistic_rounds):
                if k * 32 + lane < present and k % half == warp:
                    part_weights[k * 32 + lane] = held_statistics[k, 0] * total[0]
        else:
            if features > 0:
                total[0] = T.float32(0)
                for k in T.unroll(rounds):
                    if k * 32 + lane < size:
                        total[0] = total[0] + aq[k] * aq[k]
                scale[0] = T.float32(1) / T.sqrt(warp_sum(total[0]) / T.float32(size) + T.float32(window.eps))
                maximum[0] = f32(MASKED)
                for k in T.unroll(rounds):
                    if k * 32 + lane < size:
                        aq[k] = affine(aq[k] * scale[0], gains[k], shifts[k], size)
                        maximum[0] = T.max(maximum[0], aq[k])
                maximum[0] = warp_maximum(maximum[0])
                total[0] = T.float32(0)
                for k in T.unroll(rounds):
                    if k * 32 + lane < size:
                        aq[k] = T.exp(aq[k] - maximum[0])
                        total[0] = total[0] + aq[k]
                total[0] = T.float32(1) / warp_sum(total[0])
                for k in T.unroll(rounds):
                    if k * 32 + lane < size and k % half == warp - half:
                        read_weights[k * 32 + lane] = aq[k] * total[0]
        T.tvm_storage_sync("shared")

        # 3. This thread's share of attention ⊙ r and of the read.
        for v in T.unroll(width):
            sums[v] = T.float32(0)
        for step in T.serial((present + groups * part_loads - 1) // (groups * part_loads)):
            for i in T.unroll(part_loads):
                j: T.let = (step * part_loads + i) * groups + group
                if j < present:
                    for v in T.unroll(width):
                        sums[v] = sums[v] + part_weights[j] * held_partial[i, v]
                load_partial(i, j + groups * part_loads)
        if column < value_size:
            for v in T.unroll(width):
                sums[v] = sums[v] * held_gate[v]
        for step in T.serial((features + groups * memory_loads - 1) // (groups * memory_loads)):
            for i in T.unroll(memory_loads):
                a: T.let = (step * memory_loads + i) * groups + group
                weight[0] = T.if_then_else(a < features, read_weights[a], T.float32(0))
                for v in T.unroll(width):
                    sums[v] = sums[v] + weight[0] * load(held_memory, i, v)
                load_memory(i, a + groups * memory_loads)

        # 4. Their sum.
        for v in T.unroll(width):
            sums[v] = group_sum(sums[v])
        if lane < lanes:
            for v in T.unroll(width):
                totals[(warp * lanes + lane) * width + v] = sums[v]
        T.tvm_storage_sync("shared")
        if tx < lanes * width and tile * lanes * width + tx < value_size:
            total[0] = T.float32(0)
            for w in T.unroll(warps):
                total[0] = total[0] + totals[w * lanes * width + tx]
            if outgoing is None:
                y[row, head * value_size + tile * lanes * width + tx] = total[0]
            else:
                totals[tx] = total[0]
        if outgoing is not None:
            T.tvm_storage_sync("shared")
            quantize_vectors(outgoing, lanes * width // outgoing.codes, THREADS)(
                totals,
                0,
                (head * value_size + tile * lanes * width) // outgoing.codes,
                T.min(value_size - tile * lanes * width, lanes * width) // outgoing.codes,
                y,
                row,
                tx,
            )

    return merge_parts
