"""Writes of the cache of values (specification 2.4)."""

from typing import Any

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cpu.reduction import clear
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.shapes import Window
from gecko_mlc.tir_kernels.value_cache import code_of, inverse_of, scale_of


def row_writer(window: Window, hardware: CPU) -> Any:
    """An inline (v, i, values, value_scales, slot, parity, offset): row i of v [n, E] fp32 into the cache
    [S, 2, C, E] of `value_dtype`, and its scales into [S, 2, C, H]."""
    heads, dv = window.heads, window.value_head_dim
    width = hardware.width(dv)

    @T.inline
    def write(v, i, values, value_scales, slot, parity, offset):
        if not window.scaled:
            for e in T.serial(window.value_dim):
                values[slot, parity, offset, e] = T.Cast(window.value_dtype, v[i, e])
        else:
            for h in T.serial(heads):
                lanes = T.alloc_buffer((1, width))
                largest = T.alloc_buffer((1,))
                inverse = T.alloc_buffer((1,))
                clear(lanes, 1, width)
                for e in T.serial(dv // width):
                    for lane in T.vectorized(width):
                        lanes[0, lane] = T.max(lanes[0, lane], T.abs(v[i, h * dv + e * width + lane]))
                largest[0] = T.float32(0)
                for lane in T.serial(width):
                    largest[0] = T.max(largest[0], lanes[0, lane])
                value_scales[slot, parity, offset, h] = scale_of(largest[0])
                inverse[0] = inverse_of(largest[0])
                for e in T.serial(dv // width):
                    for lane in T.vectorized(width):
                        values[slot, parity, offset, h * dv + e * width + lane] = code_of(
                            v[i, h * dv + e * width + lane], inverse[0]
                        )

    return write
