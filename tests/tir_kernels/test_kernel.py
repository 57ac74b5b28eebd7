"""The decorator of kernels: what it makes of a function, and what it says of a faulty one."""

from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from tvm.error import DiagnosticError, InternalError
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.kernel import kernel


def shift(has_bias: bool, uses_bias: bool, dim: int = 8) -> Any:
    """Kernel (x [n, D], bias [n, D] if it has one) → y [n, D]."""

    @kernel(bias=has_bias)
    def compute(x_handle: T.handle, bias_handle: T.handle, y_handle: T.handle):
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        bias = T.match_buffer(bias_handle, (n, dim), "float32")
        y = T.match_buffer(y_handle, (n, dim), "float32")
        for i, d in T.grid(n, dim):
            if uses_bias:
                y[i, d] = x[i, d] + bias[i, d]
            else:
                y[i, d] = x[i, d]

    return compute


def test_a_kernel_is_a_scheduled_private_function(dim: int = 8) -> None:
    @T.prim_func(s_tir=True, private=True)
    def expected(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        x = T.match_buffer(x_handle, (n, dim), "float32")
        y = T.match_buffer(y_handle, (n, dim), "float32")
        for i, d in T.grid(n, dim):
            y[i, d] = x[i, d]

    assert tvm_ffi.structural_equal(shift(has_bias=False, uses_bias=False), expected)


def test_a_parameter_is_left_out_by_the_name_of_its_buffer() -> None:
    assert [p.name for p in shift(has_bias=True, uses_bias=True).params] == ["x", "bias", "y"]
    assert [p.name for p in shift(has_bias=False, uses_bias=False).params] == ["x", "y"]


def test_what_is_left_out_cannot_be_used() -> None:
    with pytest.raises(InternalError, match="buffer bias is used"):
        shift(has_bias=False, uses_bias=True)


def test_only_parameters_can_be_left_out() -> None:
    with pytest.raises(TypeError, match="compute has no parameter bias"):

        @kernel(bias=False)
        def compute(x: T.Buffer((8,), "float32")):
            x[0] = x[1]


def test_an_error_names_its_line() -> None:
    with pytest.raises(DiagnosticError, match=r"Undefined variable: shift_by[\s\S]*test_kernel\.py:(\d+)") as raised:

        @kernel
        def compute(x: T.Buffer((8,), "float32")):
            x[0] = x[1] + shift_by  # noqa: F821

    line = int(str(raised.value).split("test_kernel.py:")[1].split(":")[0])
    assert "shift_by" in Path(__file__).read_text().splitlines()[line - 1]
