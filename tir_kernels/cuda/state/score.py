"""Scores of targets for CUDA: their log-probabilities, and the entropies of what they were drawn from."""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import warp_maximum, warp_sum
from gecko_mlc.tir_kernels.expressions import MASKED, f32
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel

# Threads of a row, and vectors that each has on their way.
THREADS, LOADS = 256, 4


@functools.cache
def score(outputs: int) -> tirx.PrimFunc:
    """Kernel (logits [n, O], targets [n] int32) → log-probabilities [n], entropies [n], all fp32.

    Logits are read once: sums are relative to the largest logit so far.
    """
    width = math.gcd(outputs, 4)
    vectors = outputs // width
    size = LOADS * width
    warps = THREADS // 32

    @kernel
    def score_rows(
        logits_handle: T.handle,
        targets_handle: T.handle,
        log_probabilities_handle: T.handle,
        entropies_handle: T.handle,
    ):
        n = T.int32()
        logits = T.match_buffer(logits_handle, (n, outputs), "float32")
        targets = T.match_buffer(targets_handle, (n,), "int32")
        log_probabilities = T.match_buffer(log_probabilities_handle, (n,), "float32")
        entropies = T.match_buffer(entropies_handle, (n,), "float32")
        row = T.launch_thread("blockIdx.x", n)
        tx = T.launch_thread("threadIdx.x", THREADS)
        # By warp: the largest logit, the sum of the exponentials, and of the exponents times those.
        parts = T.alloc_buffer((3, warps), scope="shared")
        values = T.alloc_buffer((size,), scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        larger = T.alloc_buffer((1,), scope="local")
        total = T.alloc_buffer((1,), scope="local")
        mean = T.alloc_buffer((1,), scope="local")
        term = T.alloc_buffer((1,), scope="local")

        @T.inline
        def raise_maximum():
            """The sums relative to `larger` instead."""
            term[0] = T.exp(maximum[0] - larger[0])
            mean[0] = (mean[0] + total[0] * (maximum[0] - larger[0])) * term[0]
            total[0] = total[0] * term[0]
            maximum[0] = larger[0]

        maximum[0] = f32(MASKED)
        total[0] = T.float32(0)
        mean[0] = T.float32(0)
        for step in T.serial(divide(vectors, THREADS * LOADS)):
            for i in T.unroll(size):
                values[i] = f32(MASKED)
            for j in T.unroll(LOADS):
                if (step * LOADS + j) * THREADS + tx < vectors:
                    for v in T.vectorized(width):
                        values[j * width + v] = logits[row, ((step * LOADS + j) * THREADS + tx) * width + v]
            larger[0] = maximum[0]
            for i in T.unroll(size):
                larger[0] = T.max(larger[0], values[i])
            raise_maximum()
            for i in T.unroll(size):
                term[0] = T.exp(values[i] - maximum[0])
                total[0] = total[0] + term[0]
                mean[0] = mean[0] + term[0] * (values[i] - maximum[0])
        larger[0] = warp_maximum(maximum[0])
        raise_maximum()
        total[0] = warp_sum(total[0])
        mean[0] = warp_sum(mean[0])
        if tx % 32 == 0:
            parts[0, tx // 32] = maximum[0]
            parts[1, tx // 32] = total[0]
            parts[2, tx // 32] = mean[0]
        T.tvm_storage_sync("shared")
        if tx < 32:
            maximum[0] = f32(MASKED)
            total[0] = T.float32(0)
            mean[0] = T.float32(0)
            if tx < warps:
                maximum[0] = parts[0, tx]
                total[0] = parts[1, tx]
                mean[0] = parts[2, tx]
            larger[0] = warp_maximum(maximum[0])
            raise_maximum()
            total[0] = warp_sum(total[0])
            mean[0] = warp_sum(mean[0])
            if tx == 0:
                log_probabilities[row] = logits[row, targets[row]] - maximum[0] - T.log(total[0])
                entropies[row] = T.log(total[0]) - mean[0] / total[0]

    return score_rows
