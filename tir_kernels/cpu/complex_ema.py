"""Complex exponential moving average (specification 2.3).

The scan runs in order over a sequence's tokens and in parallel over tiles of channels, with the states of a tile
in registers: on a CPU it is the form with the least work. A step of one token goes through memory instead.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import EMA


@functools.cache
def complex_ema(phase: Phase, ema: EMA, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (u [n, D], coefficients [5, N, D], slots, state [S, 2, N, D]) → y [n, D].

    All fp32; the state of the named slots is updated in place.
    """
    dim, components, slots = ema
    width = hardware.width(dim)
    # Vectors of a step's tile: long runs of memory, sums that still fit in registers.
    vectors = math.gcd(dim // width, hardware.registers // 4) if phase is Phase.DECODE else 1
    channels = vectors * width

    @T.inline
    def scan(u, coefficients, n, slot, d, state, y):
        """The n tokens of channels d … d + width, whose states stay in registers."""
        re = T.alloc_buffer((components, width))
        im = T.alloc_buffer((components, width))
        total = T.alloc_buffer((width,))
        entering = T.alloc_buffer((2, width))
        for j in T.serial(components):
            for lane in T.vectorized(width):
                re[j, lane] = state[slot, 0, j, d + lane]
                im[j, lane] = state[slot, 1, j, d + lane]
        for t in T.serial(n):
            for lane in T.vectorized(width):
                total[lane] = u[t, d + lane]
            for j in T.serial(components):
                for lane in T.vectorized(width):
                    entering[0, lane] = (
                        coefficients[0, j, d + lane] * re[j, lane]
                        - coefficients[1, j, d + lane] * im[j, lane]
                        + coefficients[2, j, d + lane] * u[t, d + lane]
                    )
                    entering[1, lane] = (
                        coefficients[0, j, d + lane] * im[j, lane] + coefficients[1, j, d + lane] * re[j, lane]
                    )
                    re[j, lane] = entering[0, lane]
                    im[j, lane] = entering[1, lane]
                    total[lane] = total[lane] + (
                        coefficients[3, j, d + lane] * re[j, lane] - coefficients[4, j, d + lane] * im[j, lane]
                    )
            for lane in T.vectorized(width):
                y[t, d + lane] = total[lane]
        for j in T.serial(components):
            for lane in T.vectorized(width):
                state[slot, 0, j, d + lane] = re[j, lane]
                state[slot, 1, j, d + lane] = im[j, lane]

    @T.inline
    def step(u, coefficients, i, slot, d, state, y):
        """Token i of channels d … d + vectors · width, component after component as they lie in memory."""
        total = T.alloc_buffer((vectors, width))
        entering = T.alloc_buffer((2, width))
        for v in T.unroll(vectors):
            for lane in T.vectorized(width):
                total[v, lane] = u[i, d + v * width + lane]
        for j in T.serial(components):
            for v in T.unroll(vectors):
                for lane in T.vectorized(width):
                    entering[0, lane] = (
                        coefficients[0, j, d + v * width + lane] * state[slot, 0, j, d + v * width + lane]
                        - coefficients[1, j, d + v * width + lane] * state[slot, 1, j, d + v * width + lane]
                        + coefficients[2, j, d + v * width + lane] * u[i, d + v * width + lane]
                    )
                    entering[1, lane] = (
                        coefficients[0, j, d + v * width + lane] * state[slot, 1, j, d + v * width + lane]
                        + coefficients[1, j, d + v * width + lane] * state[slot, 0, j, d + v * width + lane]
                    )
                    state[slot, 0, j, d + v * width + lane] = entering[0, lane]
                    state[slot, 1, j, d + v * width + lane] = entering[1, lane]
                    total[v, lane] = total[v, lane] + (
                        coefficients[3, j, d + v * width + lane] * entering[0, lane]
                        - coefficients[4, j, d + v * width + lane] * entering[1, lane]
                    )
        for v in T.unroll(vectors):
            for lane in T.vectorized(width):
                y[i, d + v * width + lane] = total[v, lane]

    @kernel
    def compute(
        u_handle: T.handle,
        coefficients: T.Buffer((5, components, dim), "float32"),
        slots_handle: T.handle,
        state: T.Buffer((slots, 2, components, dim), "float32"),
        y_handle: T.handle,
    ):
        n = T.int32()
        u = T.match_buffer(u_handle, (n, dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (phase.sequences(n),), "int32")
        y = T.match_buffer(y_handle, (n, dim), "float32")
        for tile in T.parallel(phase.sequences(n) * (dim // channels)):
            s: T.let = tile // (dim // channels)
            d: T.let = tile % (dim // channels) * channels
            slot: T.let = slot_ids[s]
            if phase is Phase.DECODE:
                step(u, coefficients, s, slot, d, state, y)
            else:
                scan(u, coefficients, n, slot, d, state, y)

    return compute
