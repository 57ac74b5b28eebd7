"""The launch plan: a library's functions as straight lines of kernel launches over static storage, as JSON.

`docs/plan.md` describes it for those who write a player. It may come from anywhere: whatever is wrong with it is a
`GeckoError` that names the place, before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.expression import EXPRESSION_SCHEMA, LARGEST, SYMBOLS, Expression, Symbol
from gecko_mlc.formats.files import parse_json, validated
from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.launches import DTYPE_BYTES, MAX_BYTES, Role, SizedLaunch, sized_launches
from gecko_mlc.formats.library import marked_text
from gecko_mlc.formats.versions import PLAN_VERSION

# What a library's file holds before its plan's JSON, which ends in a zero byte.
PLAN_MARKER = b"\x01gecko-mlc plan\x01"
MAX_PLAN_BYTES = 64 * 2**20
# Offsets are multiples of what every device can bind at.
ALIGNMENT = 256
MAX_THREADS = 1024

Access = Literal["read", "write", "read_write"]
Dtype = Literal["float32", "float16", "bfloat16", "int32", "uint32", "int8"]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,128}$")]
_Index = Annotated[int, Field(strict=True, ge=0, le=2**16)]
_Extent = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
_Size = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
_Threads = Annotated[int, Field(strict=True, ge=1, le=MAX_THREADS)]
_SharedBytes = Annotated[int, Field(strict=True, ge=0, le=2**20)]
_Bytes = Annotated[int, Field(strict=True, ge=1, le=MAX_BYTES)]
_Offset = Annotated[int, Field(strict=True, ge=0, le=MAX_BYTES, multiple_of=ALIGNMENT)]
_Flag = Annotated[bool, Field(strict=True)]


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

    outputs: _Size = 0
    inputs: _Size = 0
    layout: GroupLayout | None = None

    @property
    def fits(self) -> bool:
        """Whether the layout of such a matrix, if there is one, has this shape."""
        return self.layout is None or self.layout.gives(self.shape, self.dtype, self.outputs, self.inputs)


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

    compute_capability: _Size = 0
    subgroup_width: Annotated[int, Field(strict=True, ge=0, le=128)] = 0
    matrix_unit: _Flag = False
    integer_dot: _Flag = False
    workgroup_threads: _Threads
    workgroup_bytes: _SharedBytes
    buffers: Annotated[int, Field(strict=True, ge=0, le=64)]


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
        return tuple(sized_launches(self, function, sizes))


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
        raise GeckoError(f"{name}: plan version {version}, expected {PLAN_VERSION}", "compile it again")
    plan = validated(Plan, value, name)
    try:
        _check_tables(plan)
        for name_of_function, function in plan.functions.items():
            plan.launches(name_of_function, **dict.fromkeys(function.symbols, 1))
            plan.launches(name_of_function, **{symbol: plan.bounds.get(symbol, 0) for symbol in function.symbols})
    except GeckoError as error:
        raise GeckoError(f"{name}: {error}") from None
    return plan


def _check_tables(plan: Plan) -> None:
    """What is said once holds for all: names are there once, sizes fit, and kernels need no more than is required."""
    for table in ("parameters", "state"):
        names: set[str] = set()
        for i, tensor in enumerate(getattr(plan, table)):
            if tensor.nbytes > MAX_BYTES:
                raise GeckoError(f"{table}.{i}: more than {MAX_BYTES} bytes")
            if tensor.name in names:
                raise GeckoError(f"{table}.{i}.name: {tensor.name} is there twice")
            names.add(tensor.name)
    for i, parameter in enumerate(plan.parameters):
        if not parameter.fits:
            raise GeckoError(f"parameters.{i}.layout: it gives another shape or dtype")
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
