"""What a call of a launch plan's function launches, worked out of the plan and the call's sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.expression import evaluate

if TYPE_CHECKING:
    from gecko_mlc.formats.plan import Argument, Buffer, Kernel, Launch, Plan

# What all languages count exactly.
MAX_BYTES = 2**53 - 1
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "int8": 1}

Role = Literal["parameter", "state", "storage", "argument", "result"]

_T = TypeVar("_T")


class Region(NamedTuple):
    """A `Buffer` of a call: `bytes` from byte `offset` of the `item`-th thing of its role."""

    role: Role
    item: int
    offset: int
    bytes: int


class SizedLaunch(NamedTuple):
    """A `Launch` of a call."""

    kernel: str
    buffers: tuple[Region, ...]
    scalars: tuple[int, ...]
    grid: tuple[int, int, int]


def sized_launches(plan: Plan, function: str, sizes: Mapping[str, int]) -> Iterator[SizedLaunch]:
    """What a call launches, with a size for each symbol of the function. Raises `GeckoError` naming the place."""
    symbols = plan.functions[function].symbols
    if set(sizes) != set(symbols) or any(not 1 <= sizes[s] <= plan.bounds.get(s, 0) for s in symbols):
        bounds = ", ".join(f"1 ≤ {s} ≤ {plan.bounds.get(s, 0)}" for s in symbols) or "none"
        raise GeckoError(f"functions.{function}: called with the sizes {dict(sizes)}, expected {bounds}")
    return _Call(plan, function, sizes).launches()


class _Call:
    """A function with sizes: what it launches, or the fault that keeps it from being launched."""

    def __init__(self, plan: Plan, name: str, sizes: Mapping[str, int]) -> None:
        self._plan, self._function, self._sizes = plan, plan.functions[name], sizes
        self._place = f"functions.{name}"
        self._buffers = [
            self._region(f"{self._place}.buffers.{i}", buffer) for i, buffer in enumerate(self._function.buffers)
        ]

    def launches(self) -> Iterator[SizedLaunch]:
        """Those whose condition holds."""
        for i, launch in enumerate(self._function.launches):
            place = f"{self._place}.launches.{i}"
            kernel = self._kernel(place, launch)
            if launch.when is not None and not self._value(f"{place}.when", launch.when):
                continue
            regions = tuple(
                self._at(f"{place}.buffers.{j}", self._buffers, index, "buffer")
                for j, index in enumerate(launch.buffers)
            )
            _check_access(place, kernel, launch, regions)
            grid = tuple(self._positive(f"{place}.grid.{j}", extent) for j, extent in enumerate(launch.grid))
            scalars = tuple(self._value(f"{place}.scalars.{j}", s) for j, s in enumerate(launch.scalars))
            yield SizedLaunch(launch.kernel, regions, scalars, grid)  # type: ignore[arg-type]

    def _kernel(self, place: str, launch: Launch) -> Kernel:
        kernel = self._plan.kernels.get(launch.kernel)
        if kernel is None:
            raise GeckoError(f"{place}.kernel: unknown kernel {launch.kernel!r}")
        for what in ("buffers", "scalars"):
            given, taken = len(getattr(launch, what)), len(getattr(kernel, what))
            if given != taken:
                raise GeckoError(f"{place}.{what}: {given} {what}, the kernel takes {taken}")
        return kernel

    def _region(self, place: str, buffer: Buffer) -> Region:
        size = _nbytes(place, [self._positive(f"{place}.shape.{i}", e) for i, e in enumerate(buffer.shape)], buffer)
        room = self._room(f"{place}.index", buffer)
        if buffer.offset + size > room:
            raise GeckoError(f"{place}: bytes {buffer.offset} to {buffer.offset + size} of {room}")
        return Region(buffer.role, buffer.index, buffer.offset, size)

    def _room(self, place: str, buffer: Buffer) -> int:
        """Bytes of what a buffer is in."""
        if buffer.role == "storage":
            return self._at(place, self._function.storages, buffer.index, "storage")
        if buffer.role in ("argument", "result"):
            argument = self._at(place, self._function.arguments, buffer.index, buffer.role)
            if argument.role != buffer.role:
                raise GeckoError(f"{place}: {argument.name} is no {buffer.role}")
            return _nbytes(place, [self._value(place, extent) for extent in argument.shape], argument)
        tensors = self._plan.parameters if buffer.role == "parameter" else self._plan.state
        return self._at(place, tensors, buffer.index, buffer.role).nbytes

    def _at(self, place: str, things: tuple[_T, ...] | list[_T], index: int, what: str) -> _T:
        if index >= len(things):
            raise GeckoError(f"{place}: {what} {index} of {len(things)}")
        return things[index]

    def _positive(self, place: str, expression: Any) -> int:
        value = self._value(place, expression)
        if value < 1:
            raise GeckoError(f"{place}: {value}, expected at least 1")
        return value

    def _value(self, place: str, expression: Any) -> int:
        try:
            return evaluate(expression, self._sizes)
        except ValueError as error:
            raise GeckoError(f"{place}: {error}") from None


def _nbytes(place: str, shape: list[int], tensor: Buffer | Argument) -> int:
    size = math.prod(shape) * DTYPE_BYTES[tensor.dtype]
    if size > MAX_BYTES:
        raise GeckoError(f"{place}: more than {MAX_BYTES} bytes")
    return size


def _check_access(place: str, kernel: Kernel, launch: Launch, regions: tuple[Region, ...]) -> None:
    """Nothing is written that only is given, nor through a buffer that overlaps with another one."""
    written = {index for index, access in zip(launch.buffers, kernel.buffers, strict=True) if access != "read"}
    for j, (index, region) in enumerate(zip(launch.buffers, regions, strict=True)):
        if kernel.buffers[j] != "read" and region.role in ("parameter", "argument"):
            raise GeckoError(f"{place}.buffers.{j}: the kernel writes what is {region.role} {region.item}")
        for other_index, other in zip(launch.buffers[:j], regions, strict=False):
            if other_index != index and overlap(region, other) and written & {index, other_index}:
                raise GeckoError(f"{place}.buffers.{j}: overlaps with buffer {other_index}, and one of them is written")


def overlap(a: Region, b: Region) -> bool:
    """Whether two regions of a call share bytes."""
    return a[:2] == b[:2] and a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
