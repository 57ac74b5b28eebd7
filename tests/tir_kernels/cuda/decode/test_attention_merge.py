"""Quantized rows of the merge; what it merges is tested with `attend`."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats, ints
from support.launch_cuda import assert_rounded, launch_cuda
from support.weights import format_of

from gecko_mlc.tir_kernels.cuda.decode.attention_merge import merge, quantized_output
from gecko_mlc.tir_kernels.cuda.decode.attention_window import parts
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.shapes import Window


@pytest.mark.parametrize(("scheme", "value_dim", "heads"), [("q4f16_1", 384, 2), ("q8f16_1", 192, 4)])
def test_merge_quantizes(scheme: str, value_dim: int, heads: int) -> None:
    """The rows that it makes in fp32; blocks have one vector or two, and a head's last one fewer."""
    rng, z_dim, chunk_size = np.random.default_rng(3), 24, 9
    window = Window(z_dim, value_dim, heads, heads, chunk_size, 2, 1e-5, "float16", "float16")
    outgoing = quantized_output(window, Matrices(format_of(scheme), 1, CUDA((80,))))
    assert outgoing is not None
    size, value_size, count = z_dim // heads, value_dim // heads, parts(chunk_size, heads)
    z, gamma, beta, r = floats(rng, 2, z_dim), *floats(rng, 2, 4, z_dim), floats(rng, 2, value_dim)
    partial = floats(rng, 2, heads, count, value_size)
    statistics = np.abs(floats(rng, 2, heads, count, 2))
    memory = floats(rng, 2, heads, size, value_size).astype(np.float16)
    inputs = z, gamma, beta, partial, statistics, r, ints(1, 0), ints(1, 0, 3, 2).reshape(2, 2), memory
    y, packed = np.full((2, value_dim), np.nan, np.float32), np.full((2, outgoing.words), 0xFFFFFFFF, np.uint32)
    launch_cuda(merge(window), *inputs, y)
    launch_cuda(merge(window, outgoing), *inputs, packed, outgoing=outgoing)
    assert_rounded(outgoing, packed, y.astype(float))
