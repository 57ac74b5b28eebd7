"""What a GPU would not bear, and what it would hide, shows in `launch_cuda`."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import commit_copies, copy_16_if, wait_copies, warp_sum
from support.launch import floats
from support.launch_cuda import launch_cuda

THREADS = 64


def kernel_of(body) -> tirx.PrimFunc:  # type: ignore[no-untyped-def]
    """A kernel (x [256]) → y [256]: body(x, y, shared, tx), where `shared` [256] is in shared memory."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(x: T.Buffer((4 * THREADS,), "float32"), y: T.Buffer((4 * THREADS,), "float32")):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((4 * THREADS,), scope="shared")
        body(x, y, shared, tx)

    return kernel


def run(kernel: tirx.PrimFunc) -> tuple[np.ndarray, np.ndarray]:
    x, y = floats(np.random.default_rng(0), 4 * THREADS), np.zeros(4 * THREADS, np.float32)
    launch_cuda(kernel, x, y)
    return x, y


@pytest.mark.parametrize("barrier", [True, False])
def test_what_others_have_not_written_is_nan(barrier: bool) -> None:
    @T.inline
    def body(x, y, shared, tx):
        for i in T.unroll(4):
            shared[i * THREADS + tx] = x[i * THREADS + tx]
        if barrier:
            T.tvm_storage_sync("shared")
        for i in T.unroll(4):
            y[i * THREADS + tx] = shared[4 * THREADS - 1 - i * THREADS - tx]

    x, y = run(kernel_of(body))
    assert np.array_equal(y, x[::-1]) == barrier
    assert np.isnan(y).any() != barrier


@pytest.mark.parametrize("pending", [0, 1])
def test_a_copy_is_nan_until_it_is_waited_for(pending: int) -> None:
    @T.inline
    def body(x, y, shared, tx):
        copy_16_if(T.address_of(shared[tx * 4]), T.address_of(x[tx * 4]), 1)
        commit_copies()
        wait_copies(pending)
        for i in T.unroll(4):
            y[tx * 4 + i] = shared[tx * 4 + i]

    x, y = run(kernel_of(body))
    np.testing.assert_array_equal(y, np.full_like(x, np.nan) if pending else x)


def test_a_barrier_of_a_part_of_the_threads() -> None:
    @T.inline
    def body(x, y, shared, tx):
        if tx < 40:
            T.tvm_storage_sync("shared")
        y[tx] = x[tx]

    with pytest.raises(RuntimeError, match="40 of 64 threads wait for others, 40 of them at line"):
        run(kernel_of(body))


def test_a_warp_whose_lanes_are_not_all_there() -> None:
    @T.inline
    def body(x, y, shared, tx):
        if tx < 40:
            y[tx] = warp_sum(x[tx])

    with pytest.raises(RuntimeError, match="8 of 64 threads wait for others"):
        run(kernel_of(body))


def test_a_copy_from_an_odd_address() -> None:
    @T.inline
    def body(x, y, shared, tx):
        copy_16_if(T.address_of(shared[tx * 4]), T.address_of(x[tx + 4]), 1)
        y[tx] = shared[tx]

    with pytest.raises(RuntimeError, match=r"thread \(1, 0, 0\): the source of a copy is not aligned"):
        run(kernel_of(body))


def test_a_value_outside_of_an_array() -> None:
    @T.inline
    def body(x, y, shared, tx):
        y[tx * 4 + 4] = x[tx]

    with pytest.raises(RuntimeError, match="wrote outside of y"):
        run(kernel_of(body))
