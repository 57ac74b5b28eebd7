"""Compile a kernel for this machine and launch it on NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from gecko_mlc.tir_kernels.machine import Machine

NATIVE = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
MACHINES = (Machine(16, 32), Machine(8, 16))


@functools.cache
def _compiled(kernel: tvm.tirx.PrimFunc) -> Callable[..., Any]:
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=NATIVE)["kernel"]


def launch(kernel: tvm.tirx.PrimFunc, *arguments: np.ndarray) -> list[np.ndarray]:
    """The arguments after the launch, those that were written among them."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
    _compiled(kernel)(*tensors)
    return [t.numpy() for t in tensors]
