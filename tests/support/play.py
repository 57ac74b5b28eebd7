"""A player of launch plans for tests: it knows a plan, and how to launch a kernel, and nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gecko_mlc.formats.launches import Region, SizedLaunch
from gecko_mlc.formats.plan import Plan
from gecko_mlc.formats.weights import NUMPY_DTYPES

# Bytes around each buffer. They are NaN, which shows where they are read.
_GUARD = 4096
# A device function: extents (grid, then block) and values (addresses, then scalars) to an error, if there is one.
Program = Callable[[Any, Any], bytes | None]


class Player:
    """Plays functions of a plan on NumPy arrays; `program` finds a kernel's by its name.

    Raises `RuntimeError` for what a GPU would not bear, and where a kernel does not do to its buffers what the plan
    says.
    """

    def __init__(self, plan: Plan, program: Callable[[str], Program]) -> None:
        self.plan, self._program = plan, program

    def play(
        self,
        function: str,
        arguments: Sequence[np.ndarray],
        state: Sequence[np.ndarray] = (),
        parameters: Sequence[np.ndarray] = (),
    ) -> None:
        """Call a function: what it writes is in the arrays, which are as the plan has them."""
        called = self.plan.functions[function]
        sizes: dict[str, int] = {}
        for given, argument in zip(called.arguments, arguments, strict=True):
            for extent, size in zip(given.shape, argument.shape, strict=True):
                assert size == (sizes.setdefault(extent, size) if isinstance(extent, str) else extent), given
            assert argument.dtype == NUMPY_DTYPES[given.dtype], given
        for given, tensors in ((self.plan.state, state), (self.plan.parameters, parameters)):
            for spec, tensor in zip(given, tensors, strict=len(tensors) > 0):
                assert (spec.shape, NUMPY_DTYPES[spec.dtype]) == (tensor.shape, tensor.dtype), spec
        launches = self.plan.launches(function, **sizes)
        memory = {
            "argument": [_bytes(a) for a in arguments],
            "state": [_bytes(s) for s in state],
            "parameter": [_bytes(p) for p in parameters],
            # NaN, so that reading what was not written shows.
            "storage": [np.full(size, 255, np.uint8) for size in called.storages],
        }
        memory["result"] = memory["argument"]
        for launch in launches:
            self._launch(function, launch, memory)

    def _launch(self, function: str, launch: SizedLaunch, memory: dict[str, list[np.ndarray]]) -> None:
        kernel = self.plan.kernels[launch.kernel]
        inside = {r: memory[r.role][r.item][r.offset : r.offset + r.bytes] for r in launch.buffers}
        guarded = {region: _guarded(content) for region, content in inside.items()}
        values = [*(guarded[region][1].ctypes.data for region in launch.buffers), *launch.scalars]
        error = self._program(launch.kernel)(
            (ctypes.c_int * 6)(*launch.grid, *kernel.block), (ctypes.c_int64 * len(values))(*values)
        )
        if error:
            raise RuntimeError(error.decode())
        written = {r for r, access in zip(launch.buffers, kernel.buffers, strict=True) if access != "read"}
        for region, (whole, content) in guarded.items():
            if region in written:
                inside[region][:] = content
            elif not np.array_equal(inside[region], content):
                raise RuntimeError(f"{launch.kernel} wrote to {self._name(function, region)}, which it only reads")
            content[:] = 255
            if (whole != 255).any():
                raise RuntimeError(f"{launch.kernel} wrote outside of {self._name(function, region)}")

    def _name(self, function: str, region: Region) -> str:
        tables: dict[str, Sequence[Any]] = {"parameter": self.plan.parameters, "state": self.plan.state}
        if region.role == "storage":
            return f"storage {region.item}"
        name: str = tables.get(region.role, self.plan.functions[function].arguments)[region.item].name
        return name


def _bytes(array: np.ndarray) -> np.ndarray:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def _guarded(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory, and the part of it that holds a copy."""
    whole = np.full(len(content) + 2 * _GUARD + 256, 255, np.uint8)
    first = _GUARD + -(whole.ctypes.data + _GUARD) % 256
    inside = whole[first : first + len(content)]
    inside[:] = content
    return whole, inside
