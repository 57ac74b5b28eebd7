"""Sums of many products of tiles on the tensor cores, whose operands come to shared memory a few steps ahead."""

import functools
from typing import Any, NamedTuple

from gecko_mlc.tir_kernels.cuda.intrinsics import commit_copies, wait_copies
from gecko_mlc.tir_kernels.cuda.tensor_cores import finish_tiles, multiply_tiles, publish_tiles
from tvm.script import tirx as T


class Pipeline(NamedTuple):
    """Inlines that share `load(stage, step)`, which copies a step's tiles, and `steps`, the number of all steps.

    `start(load, steps)` begins the first copies. `multiply(sums, left, right, load, first, end, steps)` adds the
    products of the steps from `first` to `end`, of tiles at the addresses left(step) and right(step).
    """

    start: Any
    multiply: Any


@functools.cache
def pipeline(dtype: str, columns: int, stages: int, pending: int, transposed: bool) -> Pipeline:
    """A pipeline of `multiply_tiles`: products of the newest `pending` steps go on while others are loaded."""
    ahead, sums_count = stages - 1 - pending, columns // 2
    multiply_tile = multiply_tiles(dtype, columns, transposed)
    finish_most, finish_all = finish_tiles(sums_count, pending), finish_tiles(sums_count)

    @T.inline
    def start(load, steps):
        for step in T.unroll(ahead):
            if step < steps:
                load(step, step)
            commit_copies()

    @T.inline
    def multiply(sums, left, right, load, first, end, steps):
        for step in T.serial(first, end):
            wait_copies(ahead - 1)
            publish_tiles()
            T.tvm_storage_sync("shared")
            multiply_tile(T.address_of(sums[0]), left(step), right(step))
            # All products but the newest were finished before the barrier.
            if step + ahead < steps:
                load((step + ahead) % stages, step + ahead)
            commit_copies()
            finish_most(T.address_of(sums[0]))
        finish_all(T.address_of(sums[0]))

    return Pipeline(start, multiply)
