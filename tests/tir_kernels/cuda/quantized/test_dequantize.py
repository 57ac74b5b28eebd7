"""Rows of codes, dequantized to memory."""

import numpy as np
import pytest
from support.gemm import F16, empty, matrix
from support.launch_cuda import launch_cuda
from support.weights import format_of
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.quantized.dequantize import CHUNKS, THREADS, dequantize_rows
from gecko_mlc.tir_kernels.kernel import kernel


@pytest.mark.parametrize("scheme", ["q4f16_1", "q8f16_1", "q3f16_1"])
def test_dequantize_rows(scheme: str) -> None:
    """Longer ones than a block's."""
    rows, features, layout = 3, 8 * CHUNKS * THREADS + 40, format_of(scheme)
    assert isinstance(layout, GroupLayout)
    launch = dequantize_rows(features, layout)

    @kernel
    def compute(memory: T.Buffer(layout.shape(rows, features), "uint32"), y: T.Buffer((rows, features), "float16")):
        launch(lambda o, i: T.address_of(memory[o, i]), rows, y)

    memory, weight = matrix(np.random.default_rng(0), rows, features, scheme)
    y = empty(rows, features, F16)
    launch_cuda(compute, memory, y)
    np.testing.assert_array_equal(y, weight)
