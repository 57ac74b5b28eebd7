"""The launch plan: a library's functions as straight lines of kernel launches over static storage, as JSON.

`docs/plan.md` describes it for those who write a player. It may come from anywhere: whatever is wrong with it is a
`GeckoError` that names the place, before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.expression import EXPRESSION_SCHEMA, LARGEST, SYMBOLS, Expression, Symbol, evaluate
from gecko_mlc.formats.files import parse_json
from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.library import marked_text

PLAN_VERSION = 1
# What a library's file holds before its plan's JSON, which ends in a zero byte.
PLAN_MARKER = b"\x01gecko-mlc plan\x01"
MAX_PLAN_BYTES = 64 * 2**20
# Offsets are multiples of what every device can bind at.
ALIGNMENT = 256
MAX_THREADS = 1024
# What all languages count exactly.
_MAX_BYTES = 2**53 - 1
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "int8": 1}

Access = Literal["read", "write", "read_write"]
Dtype = Literal["float32", "float16", "bfloat16", "int32", "uint32", "int8"]
Role = Literal["parameter", "state", "storage", "argument", "result"]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,128}$")]
_Index = Annotated[int, Field(strict=True, ge=0, le=2**16)]
_Extent = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
_Threads = Annotated[int, Field(strict=True, ge=1, le=MAX_THREADS)]
_SharedBytes = Annotated[int, Field(strict=True, ge=0, le=2**20)]
_Bytes = Annotated[int, Field(strict=True, ge=1, le=_MAX_BYTES)]
_Offset = Annotated[int, Field(strict=True, ge=0, le=_MAX_BYTES, multiple_of=ALIGNMENT)]
_Flag = Annotated[bool, Field(strict=True)]

_T = TypeVar("_T")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Tensor(_Model):
    """A parameter or a state tensor, whole: of the state, with the leading axis of slots."""

    name: _Name
    dtype: Dtype
    shape: tuple[_Extent, ...] = Field(max_length=8)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class ParameterTensor(Tensor):
    """A parameter as kernels take it. With a `layout` it is made, when it is loaded, of a matrix [outputs, inputs]."""

    outputs: _Index | _Extent = 0
    inputs: _Index | _Extent = 0
    layout: GroupLayout | None = None


class StateBuffer(Tensor):
    """A tensor of the state, and what all of its elements are in a slot that was reset."""

    initial: Literal["zero", "minus_infinity"]


class Argument(_Model):
    """What a call of a function gives it, or gives it room for (`result`): extents are integers or symbols."""

    role: Literal["argument", "result"]
    name: _Name
    dtype: Dtype
    shape: tuple[_Extent | Symbol, ...] = Field(max_length=8)


class Buffer(_Model):
    """A contiguous range of memory that kernels take: from byte `offset` of the `index`-th thing of its role, a tensor.

    Parameters and states are the plan's, storages and arguments (and results) the function's.
    """

    role: Role
    index: _Index
    offset: _Offset = 0
    dtype: Dtype
    shape: tuple[Expression, ...] = Field(max_length=8)


class Kernel(_Model):
    """A device function: it takes buffers, then 32-bit integers.

    `shared_bytes` are those of dynamic shared memory, which the launch asks for. One that `overlaps` may start before
    the launch ahead of it has ended: it waits for that itself (CUDA's programmatic dependent launch).
    """

    buffers: tuple[Access, ...] = Field(max_length=64)
    scalars: tuple[Literal["int32"], ...] = Field(max_length=32)
    block: tuple[_Threads, _Threads, _Threads]
    shared_bytes: _SharedBytes = 0
    overlaps: _Flag = False


class Launch(_Model):
    """A launch of a kernel with the function's buffers, by index; `when` is not 0, if it is there."""

    kernel: _Name
    buffers: tuple[_Index, ...] = Field(max_length=64)
    scalars: tuple[Expression, ...] = Field(max_length=32)
    grid: tuple[Expression, Expression, Expression]
    when: Expression | None = None


class Function(_Model):
    """What a call takes, the bytes of the storages that it needs while it runs, and its launches in order."""

    arguments: tuple[Argument, ...] = Field(max_length=16)
    storages: tuple[_Bytes, ...] = Field(max_length=1024)
    buffers: tuple[Buffer, ...] = Field(max_length=2**16)
    launches: tuple[Launch, ...] = Field(max_length=2**16)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Those of `SYMBOLS` that its arguments give a size."""
        return tuple(s for s in SYMBOLS if any(s in argument.shape for argument in self.arguments))


class Requirements(_Model):
    """What a device must have: a player takes the first of its plans that the device has all of.

    `compute_capability` is CUDA's, as 80; `subgroup_width` the lanes that exchange values (0: none do);
    `workgroup_bytes` the shared memory of a workgroup, static and dynamic; `buffers` those of one launch.
    """

    compute_capability: _Index = 0
    subgroup_width: Annotated[int, Field(strict=True, ge=0, le=128)] = 0
    matrix_unit: _Flag = False
    integer_dot: _Flag = False
    workgroup_threads: _Threads
    workgroup_bytes: _SharedBytes
    buffers: Annotated[int, Field(strict=True, ge=0, le=64)]


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


class Plan(_Model):
    """The launch plan of one variant of a library. `bounds` are the largest n and b of a call; the smallest is 1."""

    plan_version: Literal[1]
    target: _Name
    requires: Requirements
    bounds: dict[Symbol, _Extent]
    parameters: tuple[ParameterTensor, ...] = Field(max_length=2**16)
    state: tuple[StateBuffer, ...] = Field(max_length=2**16)
    kernels: dict[_Name, Kernel] = Field(max_length=4096)
    functions: dict[_Name, Function] = Field(max_length=64)

    def launches(self, function: str, **sizes: int) -> tuple[SizedLaunch, ...]:
        """What a call launches, with a size for each symbol of the function. Raises `GeckoError` naming the place."""
        called = self.functions[function]
        if set(sizes) != set(called.symbols) or any(not 1 <= sizes[s] <= self.bounds.get(s, 0) for s in called.symbols):
            bounds = ", ".join(f"1 ≤ {s} ≤ {self.bounds.get(s, 0)}" for s in called.symbols) or "none"
            raise GeckoError(f"functions.{function}: called with the sizes {sizes}, expected {bounds}")
        return tuple(_Call(self, f"functions.{function}", called, sizes).launches())


class _Call:
    """A function with sizes: what it launches, or the fault that keeps it from being launched."""

    def __init__(self, plan: Plan, place: str, function: Function, sizes: Mapping[str, int]) -> None:
        self._plan, self._place, self._function, self._sizes = plan, place, function, sizes
        self._buffers = [self._region(f"{place}.buffers.{i}", buffer) for i, buffer in enumerate(function.buffers)]

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
    if size > _MAX_BYTES:
        raise GeckoError(f"{place}: more than {_MAX_BYTES} bytes")
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


def read_plan(path: Path) -> Plan:
    """The launch plan in the library at `path`. Raises `GeckoError` where there is none, or none to be played."""
    text = marked_text(path, PLAN_MARKER)
    if not text:
        raise GeckoError(f"{path}: no launch plan in it; libraries for GPUs have one")
    try:
        return parse_plan(text.decode(), path)
    except UnicodeDecodeError as error:
        raise GeckoError(f"{path}: not JSON: {error}") from None


def dump_plan(plan: Plan) -> str:
    """The JSON text of a plan, without what is as by default."""
    return plan.model_dump_json(exclude_defaults=True)


def parse_plan(text: str, name: object) -> Plan:
    """The plan in a JSON text that may be hostile, of what `name` says.

    Every function is tried at its smallest and largest sizes. Raises `GeckoError` naming the place of what is wrong.
    """
    if len(text) > MAX_PLAN_BYTES:
        raise GeckoError(f"{name}: a launch plan of {len(text):,} bytes, expected at most {MAX_PLAN_BYTES:,}")
    value = parse_json(text, name)
    if type(version := value.get("plan_version")) is not int or version != PLAN_VERSION:
        raise GeckoError(f"{name}: plan version {version}, expected {PLAN_VERSION}; compile it again")
    try:
        plan = Plan.model_validate(value)
        _check_tables(plan)
        for name_of_function, function in plan.functions.items():
            plan.launches(name_of_function, **dict.fromkeys(function.symbols, 1))
            plan.launches(name_of_function, **{symbol: plan.bounds.get(symbol, 0) for symbol in function.symbols})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise GeckoError(f"{name}: {'.'.join(map(str, first['loc']))}: {reason}") from None
    except GeckoError as error:
        raise GeckoError(f"{name}: {error}") from None
    return plan


def _check_tables(plan: Plan) -> None:
    """What is said once holds for all: names are there once, sizes fit, and kernels need no more than is required."""
    for table in ("parameters", "state"):
        names: set[str] = set()
        for i, tensor in enumerate(getattr(plan, table)):
            if tensor.nbytes > _MAX_BYTES:
                raise GeckoError(f"{table}.{i}: more than {_MAX_BYTES} bytes")
            if tensor.name in names:
                raise GeckoError(f"{table}.{i}.name: {tensor.name} is there twice")
            names.add(tensor.name)
    limits: dict[str, tuple[int, Callable[[Kernel], int]]] = {
        "block": (plan.requires.workgroup_threads, lambda kernel: math.prod(kernel.block)),
        "shared_bytes": (plan.requires.workgroup_bytes, lambda kernel: kernel.shared_bytes),
        "buffers": (plan.requires.buffers, lambda kernel: len(kernel.buffers)),
    }
    for name, kernel in plan.kernels.items():
        for what, (limit, of) in limits.items():
            if of(kernel) > limit:
                raise GeckoError(f"kernels.{name}.{what}: {of(kernel)}, the plan requires {limit} of a device")


def plan_schema() -> dict[str, Any]:
    """The JSON schema of a plan, `docs/plan.schema.json`."""
    # Pydantic refers to nothing that it has not made itself.
    text = json.dumps(Plan.model_json_schema()).replace('"$comment": "Expression"', '"$ref": "#/$defs/Expression"')
    schema: dict[str, Any] = json.loads(text)
    schema["$defs"]["Expression"] = EXPRESSION_SCHEMA
    return schema
