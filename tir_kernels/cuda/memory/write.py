"""A chunk is written into the memory."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.narrow import narrow
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import Window

THREADS = 256


@functools.cache
def write(window: Window) -> tirx.PrimFunc:
    """Kernel (slots [b], position, log_mass [S, H, dz], memory_sum [S, H, dz, dv + dz], log_norm [S, H, dz],
    memory [S, H, dz, dv] and, for 16-bit keys, memory_read [S, H, dz, dv] of their dtype).

    At the end of a chunk, ℓ ← logaddexp(ℓ, lnλ) and M ← (1 − ρ) M + ρ U (2.7); `memory_read` is M rounded. The first
    write reads neither ℓ nor M. Does nothing at the end of chunk 0.
    """
    size, value_size, heads = window.head_dim, window.value_head_dim, window.heads
    width = math.gcd(value_size, 4)
    rounds = divide(value_size, THREADS * width)
    rounded, convert = window.key_dtype != "float32", narrow(window.key_dtype)

    @kernel(memory_read=rounded)
    def compute(
        slots_handle: T.handle,
        position: T.Buffer((window.slots, 2), "int32"),
        log_mass: T.Buffer(window.log_norm, "float32"),
        memory_sum: T.Buffer((*window.log_norm, value_size + size), "float32"),
        log_norm: T.Buffer(window.log_norm, "float32"),
        memory: T.Buffer(window.memory, "float32"),
        memory_read: T.Buffer(window.memory, window.key_dtype),
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
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
                    if rounded:
                        for v in T.vectorized(width):
                            memory_read[slot, head, a, column + v] = convert(new[v])

    return compute
