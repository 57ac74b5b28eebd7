"""What a plan says wrongly of a kernel shows when it is played."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from support.launch_cuda import Kernels
from support.play import Player


@T.prim_func(s_tir=True)
def double(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True, "global_symbol": "kernel"})
    tx = T.launch_thread("threadIdx.x", 64)
    y[tx] = x[tx] * T.float32(2)


def test_a_kernel_that_writes_what_the_plan_says_it_reads() -> None:
    arrays = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    kernels = Kernels(tvm.IRModule({"kernel": double}))
    plan = kernels.plan_of_one(arrays)
    Player(plan, kernels.program).play("kernel", arrays)
    np.testing.assert_array_equal(arrays[1], 2 * arrays[0])
    assert plan.kernels["kernel_kernel"].buffers == ("read", "write")
    wrong = plan.kernels["kernel_kernel"].model_copy(update={"buffers": ("read", "read")})
    with pytest.raises(RuntimeError, match="kernel_kernel wrote to y, which it only reads"):
        Player(plan.model_copy(update={"kernels": {"kernel_kernel": wrong}}), kernels.program).play(
            "kernel", (arrays[0], np.zeros(64, np.float32))
        )
