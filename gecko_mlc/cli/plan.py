"""`info --plan`: a launch plan for people."""

from __future__ import annotations

from collections.abc import Iterator

from gecko_mlc.formats.expression import infix
from gecko_mlc.formats.plan import Function, Plan


def plan_lines(plan: Plan) -> Iterator[str]:
    """What a plan needs, and of each function its storages, and its launches with what they read and write."""
    needed = plan.requires
    yield f"launch plan {plan.plan_version} for {plan.target}, {len(plan.kernels)} kernels"
    yield (
        f"up to {needed.buffers} buffers a launch,"
        f" {needed.workgroup_threads} threads and {needed.workgroup_bytes:,} bytes a workgroup"
    )
    for name, function in plan.functions.items():
        arguments = ", ".join(f"{a.name} {a.dtype}[{', '.join(map(str, a.shape))}]" for a in function.arguments)
        bounds = "".join(f", {symbol} up to {plan.bounds[symbol]}" for symbol in function.symbols)
        yield ""
        yield f"{name}({arguments}){bounds}: {len(function.launches)} launches, {_storages(function)}"
        yield from _launch_lines(plan, function)


def _storages(function: Function) -> str:
    sizes = function.storages
    if not sizes:
        return "no storage"
    return f"{len(sizes)} storages of {', '.join(f'{size:,}' for size in sizes)} bytes"


def _launch_lines(plan: Plan, function: Function) -> Iterator[str]:
    rows = []
    for i, launch in enumerate(function.launches):
        kernel = plan.kernels[launch.kernel]
        accesses = list(zip(launch.buffers, kernel.buffers, strict=True))
        reads, writes = (
            " ".join(dict.fromkeys(_name(plan, function, index) for index, access in accesses if what in access))
            for what in ("read", "write")
        )
        grid = " × ".join(map(infix, launch.grid))
        when = "" if launch.when is None else f" if {infix(launch.when)}"
        rows.append((str(i), launch.kernel, grid, " × ".join(map(str, kernel.block)), f"{reads} → {writes}{when}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            [row[0].rjust(widths[0]), *(cell.ljust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()


def _name(plan: Plan, function: Function, index: int) -> str:
    buffer = function.buffers[index]
    if buffer.role == "storage":
        return f"storage.{buffer.index}" + f"+{buffer.offset}" * (buffer.offset > 0)
    tables = {"parameter": plan.parameters, "state": plan.state}
    return tables.get(buffer.role, function.arguments)[buffer.index].name
