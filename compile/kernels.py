"""The kernels of a library: what launches them, how, and what they take of a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import tvm
from tvm import relax, tirx
from tvm_ffi import WalkResult, structural_walk

from gecko_mlc.formats.library import FUNCTIONS


class Usage(NamedTuple):
    """What a kernel takes on one architecture, as its compiler says: bytes, and registers of a thread."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


class DeviceFunction(NamedTuple):
    """What a kernel launches on a GPU: `dynamic_shared_bytes` come on top of what `usage` says for each
    architecture."""

    name: str
    threads: int
    dynamic_shared_bytes: int
    usage: dict[int, Usage] = {}  # noqa: RUF012


class Kernel(NamedTuple):
    """One kernel: `launches` of each function that has any, and on a GPU its device functions, of which the number of
    rows may choose."""

    name: str
    launches: dict[str, int]
    device_functions: tuple[DeviceFunction, ...] = ()

    def with_usage(self, usage: dict[tuple[str, int], Usage]) -> Kernel:
        """The kernel with what the compiler reported of it."""
        return self._replace(
            device_functions=tuple(
                function._replace(usage={a: used for (name, a), used in usage.items() if name == function.name})
                for function in self.device_functions
            )
        )


def kernels_of(lowered: tvm.IRModule) -> tuple[Kernel, ...]:
    """The kernels of `compile.pipeline.lower`'s result, in the order of the first launch."""
    launches: dict[str, Counter[str]] = {}
    names = {variable.name_hint for variable in lowered.get_global_vars()}
    for function in (name for name in FUNCTIONS if name in names):
        for block in lowered[function].body.blocks:
            for binding in block.bindings:
                if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar):
                    launches.setdefault(binding.value.op.name_hint, Counter())[function] += 1
    return tuple(
        Kernel(name, dict(counts), tuple(device_functions(name, lowered[name]))) for name, counts in launches.items()
    )


def device_functions(name: str, kernel: tirx.PrimFunc) -> Iterator[DeviceFunction]:
    """Those of a kernel, none on a CPU, as TVM will name them."""
    bodies: list[tirx.AttrStmt] = []

    def launch(statement: tirx.AttrStmt) -> WalkResult:
        if statement.attr_key != "thread_extent":
            return WalkResult.ADVANCE
        bodies.append(statement)
        return WalkResult.SKIP

    structural_walk(kernel.body, [(tirx.AttrStmt, launch)], order="pre")
    for i, body in enumerate(bodies):
        block, shared = block_of(body), shared_bytes(body, "shared.dyn")
        yield DeviceFunction(f"{name}_kernel" + f"_{i}" * (i > 0), math.prod(block), shared)


def block_of(launch: tirx.Stmt) -> tuple[int, int, int]:
    """Threads of a block along x, y and z."""
    threads: dict[str, int] = {}

    def bind(statement: tirx.AttrStmt) -> None:
        if statement.attr_key == "thread_extent" and statement.node.thread_tag.startswith("threadIdx"):
            threads[statement.node.thread_tag[-1]] = int(statement.value)

    structural_walk(launch, [(tirx.AttrStmt, bind)], order="pre")
    return threads.get("x", 1), threads.get("y", 1), threads.get("z", 1)


def shared_bytes(launch: tirx.Stmt, scope: str) -> int:
    """Bytes of a block's memory in the scopes that begin so: of "shared", or of "shared.dyn" alone."""
    total = 0

    def allocate(statement: tirx.AllocBuffer) -> None:
        nonlocal total
        buffer = statement.buffer
        if buffer.scope().startswith(scope):
            total += math.prod(int(extent) for extent in buffer.shape) * tvm.DataType(buffer.dtype).bits // 8

    structural_walk(launch, [(tirx.AllocBuffer, allocate)], order="pre")
    return total


def launches_of(kernels: tuple[Kernel, ...], function: str, layers: int) -> tuple[int, int, int]:
    """Launches of a function: in all, in each layer, and besides those."""
    counts = [kernel.launches.get(function, 0) for kernel in kernels]
    return sum(counts), sum(count // layers for count in counts), sum(count % layers for count in counts)
