"""Compile a kernel for this machine and launch it on NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.target import codegen

from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles import value_cache
from gecko_mlc.tir_kernels.shapes import Window

NATIVE = tvm.target.Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
# The schedules of AVX-512, AVX2 and NEON; the code generator makes any of them run here.
cpus = pytest.mark.parametrize(
    "hardware",
    [CPU(16, 32), CPU(8, 16), CPU(4, 32)],
    ids=["avx512", "avx2", "neon"],
)
# Even heads and odd ones, chunks of one tile and of several, and every dtype of the caches.
windows = pytest.mark.parametrize(
    "window",
    [
        Window(z, e, heads, heads, chunk_size, 3, 1e-5, key_dtype, value_dtype)
        for z, e, heads, chunk_size, key_dtype, value_dtype in (
            (12, 20, 2, 7, "float32", "float32"),
            (16, 64, 2, 300, "float16", "float16"),
            (18, 21, 3, 13, "float32", "float32"),
            (16, 64, 2, 135, "float16", "int8"),
            (18, 21, 3, 13, "float32", "int8"),
        )
    ],
    ids=lambda window: f"{window.z_dim}-{window.chunk_size}-{window.value_dtype}",
)


@functools.cache
def _compiled(kernel: tvm.tirx.PrimFunc) -> Callable[..., Any]:
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=NATIVE)["kernel"]


def launch(kernel: tvm.tirx.PrimFunc, *arguments: np.ndarray) -> list[np.ndarray]:
    """The arguments after the launch, those that were written among them."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
    _compiled(kernel)(*tensors)
    return [t.numpy() for t in tensors]


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal fp32 numbers."""
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    """An int32 vector."""
    return np.array(values, np.int32)


def cached_values(v: np.ndarray, heads: int, dtype: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Values [..., E] as a cache of `dtype` holds them (codes and scales of int8), and what they are there in fp64."""
    if dtype != "int8":
        return [v.astype(dtype)], v.astype(dtype).astype(float)
    with np.errstate(invalid="ignore"):  # NaN is what does not exist.
        codes, scales = value_cache.oracle(v, heads)
    return [codes, scales], value_cache.values_of(codes, scales).astype(float)
