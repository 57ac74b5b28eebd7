"""The launch plan of a GPU's library, read off what the pipelines make of its functions.

A function of `pipeline.lower` is a straight line of kernels over storage. Each kernel is split into device functions
and what a host does to launch them: extents, scalars, and conditions on the number of rows. All of it is data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import relax, tirx
from tvm_ffi import WalkResult, structural_walk

from gecko_mlc.compile.kernels import block_of, shared_bytes
from gecko_mlc.formats.launches import Role
from gecko_mlc.formats.library import FUNCTIONS, Metadata, functions_of
from gecko_mlc.formats.plan import (
    Access,
    Argument,
    Buffer,
    Function,
    Kernel,
    Launch,
    ParameterTensor,
    Plan,
    Requirements,
    StateBuffer,
)
from gecko_mlc.formats.versions import PLAN_VERSION

_OVERLAPS = "tirx.use_programtic_dependent_launch"  # TVM's spelling
_OPERATORS = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "FloorDiv": "/",
    "FloorMod": "%",
    "Div": "/",
    "Mod": "%",
    "Min": "min",
    "Max": "max",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "EQ": "==",
    "NE": "!=",
    "And": "and",
    "Or": "or",
}


@contextmanager
def keep_split() -> Iterator[list[tvm.IRModule]]:
    """While the block lasts, what the kernels' pipeline makes of them: functions of the host and of the device."""
    kept: list[tvm.IRModule] = []

    @tvm.instrument.pass_instrument
    class Keep:
        def run_before_pass(self, module: tvm.IRModule, info: Any) -> None:
            if info.name == "tirx.MakePackedAPI":
                kept.append(module)

    with tvm.transform.PassContext(instruments=[Keep()]):
        yield kept


def kernels_in(lowered: tvm.IRModule) -> tvm.IRModule:
    """The kernels of `pipeline.lower`'s result, to be split under the names that they have there."""
    named = {v.name_hint: f for v, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc)}
    return tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in named.items()})


def make_plan(
    metadata: Metadata,
    lowered: tvm.IRModule,
    split: tvm.IRModule,
    requirements: Callable[[Mapping[str, Kernel], tvm.IRModule], Requirements],
) -> Plan:
    """The plan of the functions of `pipeline.lower`'s result, whose kernels `keep_split` has kept.

    `requirements` tells what a device has to have for those.
    """
    bounds = {"n": metadata.prefill_chunk_size, "b": metadata.max_batch_size}
    functions = {
        name: _Walk(name, len(metadata.state), lowered[name], split).function()
        for name in functions_of(metadata.absorb_tile)
    }
    launched = dict.fromkeys(launch.kernel for function in functions.values() for launch in function.launches)
    kernels = {name: kernel_of(split[name]) for name in launched}
    return Plan(
        plan_version=PLAN_VERSION,
        target=metadata.target.kind,
        requires=requirements(kernels, split),
        bounds=bounds,
        parameters=tuple(ParameterTensor.model_validate(p.model_dump()) for p in metadata.parameters),
        state=tuple(
            StateBuffer(name=s.name, dtype=s.dtype, shape=(metadata.max_batch_size, *s.shape), initial=s.initial)
            for s in metadata.state
        ),
        kernels=kernels,
        functions=functions,
    )


def kernel_of(device: tirx.PrimFunc) -> Kernel:
    """How a device function is launched, and what it does to its buffers."""
    pointers = [p for p in device.params if isinstance(p.ty, tvm.ir.PointerType)]
    access = _accesses(device)
    return Kernel(
        buffers=tuple(access[pointer] for pointer in pointers),
        scalars=tuple(str(p.ty) for p in device.params[len(pointers) :]),
        block=block_of(device.body),
        shared_bytes=shared_bytes(device.body, "shared.dyn"),
        overlaps=_OVERLAPS in device.attrs["tirx.kernel_launch_params"],
    )


def host_launches(host: tirx.PrimFunc, extents: Mapping[Any, Any], buffers: Sequence[int]) -> Iterator[Launch]:
    """What a kernel's host function launches, its parameters being these buffers, and its symbols these expressions."""
    known = dict(extents)
    sources: dict[Any, Any] = {}

    def index(buffer: Any) -> int:
        while buffer in sources:
            buffer = sources[buffer]
        return buffers[next(i for i, p in enumerate(host.params) if p.same_as(buffer))]

    def visit(node: Any, when: Any) -> Iterator[Launch]:
        if isinstance(node, tirx.SeqStmt):
            for part in node.seq:
                yield from visit(part, when)
        elif isinstance(node, tirx.Bind):
            known[node.var] = _expression(node.value, known)
        elif isinstance(node, tirx.DeclBuffer):
            (sources[node.buffer],) = node.data.args
        elif isinstance(node, tirx.AttrStmt):
            yield from visit(node.body, when)
        elif isinstance(node, tirx.IfThenElse):
            condition = _expression(node.condition, known)
            yield from visit(node.then_case, _both(when, condition))
            if node.else_case is not None:
                yield from visit(node.else_case, _both(when, ("not", condition)))
        elif isinstance(node, tirx.Evaluate) and isinstance(node.value, tvm.ir.Call):
            call = node.value
            assert call.op.name == "tirx.call_ffi_kernel", call
            # An overlapped launch is a tag without a value.
            tags = [str(tag) for tag in call.attrs.launch_params if tag != _OVERLAPS]
            values = call.args[1 : -len(tags)]
            grid = dict(zip(tags, call.args[-len(tags) :], strict=True))
            pointers = [v for v in values if isinstance(v, tvm.ir.Call) and v.op.name == "tirx.buffer_data"]
            yield Launch(
                kernel=call.args[0].value,
                buffers=tuple(index(pointer.args[0]) for pointer in pointers),
                scalars=tuple(_expression(value, known) for value in values[len(pointers) :]),
                grid=tuple(_expression(grid.get(f"blockIdx.{axis}", 1), known) for axis in "xyz"),
                when=when,
            )
        else:
            raise AssertionError(f"a kernel's host does more than launch: {node}")

    yield from visit(host.body, None)


class _Walk:
    """One function: what its variables are, and the buffers that launches take of them."""

    def __init__(self, name: str, states: int, function: relax.Function, split: tvm.IRModule) -> None:
        self._inputs, self._function, self._split = FUNCTIONS[name], function, split
        self._tensors: dict[Any, Buffer] = {}
        self._storages: list[int] = []
        self._storage_of: dict[Any, int] = {}
        self._buffers: dict[Buffer, int] = {}
        inputs = len(self._inputs)
        for i, parameter in enumerate(function.params):
            if i < inputs:
                role: Role = "result" if self._inputs[i].written else "argument"
                self._tensors[parameter] = _buffer(role, i, 0, parameter.ty.shape.values, str(parameter.ty.dtype))
            else:
                role, index = ("state", i - inputs) if i < inputs + states else ("parameter", i - inputs - states)
                self._tensors[parameter] = _buffer(role, index, 0, parameter.ty.shape.values, str(parameter.ty.dtype))

    def function(self) -> Function:
        """The function's part of the plan."""
        launches: list[Launch] = []
        for block in self._function.body.blocks:
            for binding in block.bindings:
                launches += self._bind(binding.var, binding.value)
        arguments = (
            Argument(role=tensor.role, name=given.name, dtype=tensor.dtype, shape=tensor.shape)
            for given, tensor in zip(self._inputs, self._tensors.values(), strict=False)
        )
        return Function(
            arguments=tuple(arguments),
            storages=tuple(self._storages),
            buffers=tuple(self._buffers),
            launches=tuple(launches),
        )

    def _bind(self, variable: relax.Var, value: Any) -> list[Launch]:
        if isinstance(value.op, tvm.ir.GlobalVar):
            return self._launch(self._split[value.op.name_hint], [self._tensors[a] for a in value.args])
        if value.op.name == "relax.memory.alloc_storage":
            self._storage_of[variable] = len(self._storages)
            self._storages.append(int(value.args[0].values[0]))
        else:
            assert value.op.name == "relax.memory.alloc_tensor", value
            storage, offset, shape, dtype = value.args[:4]
            self._tensors[variable] = _buffer(
                "storage", self._storage_of[storage], int(offset.value), shape.values, str(dtype.value)
            )
        return []

    def _launch(self, host: tirx.PrimFunc, tensors: Sequence[Buffer]) -> list[Launch]:
        extents = {}
        for parameter, tensor in zip(host.params, tensors, strict=True):
            for extent, given in zip(parameter.shape, tensor.shape, strict=True):
                if isinstance(extent, tirx.Var):
                    extents[extent] = given
        return list(
            host_launches(host, extents, [self._buffers.setdefault(tensor, len(self._buffers)) for tensor in tensors])
        )


def _buffer(role: Role, index: int, offset: int, shape: Sequence[Any], dtype: str) -> Buffer:
    # The functions' symbols are the plan's.
    extents = tuple(extent.name if isinstance(extent, tirx.Var) else int(extent) for extent in shape)
    return Buffer(role=role, index=index, offset=offset, dtype=dtype, shape=extents)


def _expression(value: Any, known: Mapping[Any, Any]) -> Any:
    """An `Expression` of what a host computes."""
    if isinstance(value, int | tirx.IntImm):
        return int(value)
    if value in known:
        return known[value]
    if isinstance(value, tirx.Cast):
        return _expression(value.value, known)
    if isinstance(value, tirx.Not):
        return ("not", _expression(value.a, known))
    if isinstance(value, tirx.Select):
        parts = (value.condition, value.true_value, value.false_value)
        return ("select", *(_expression(part, known) for part in parts))
    return (_OPERATORS[type(value).__name__], _expression(value.a, known), _expression(value.b, known))


def _both(when: Any, condition: Any) -> Any:
    return condition if when is None else ("and", when, condition)


def _accesses(device: tirx.PrimFunc) -> dict[Any, Access]:
    """What a device function does with each of its pointers, itself or through the functions that it calls."""
    pointers: dict[Any, Any] = {parameter: parameter for parameter in device.params}
    loaded: set[Any] = set()
    stored: set[Any] = set()

    def declare(statement: tirx.DeclBuffer) -> None:
        data = statement.data.args[0] if isinstance(statement.data, tvm.ir.Call) else statement.data
        pointers[statement.buffer] = pointers.get(data)

    def load(value: tvm.ir.TensorLoad) -> None:
        loaded.add(pointers.get(value.source))

    def store(statement: tirx.BufferStore) -> None:
        stored.add(pointers.get(statement.buffer))

    def call(value: tvm.ir.Call) -> WalkResult:
        if value.op.name == "tirx.address_of":
            # It loads nothing but what its indices do.
            for index in value.args[0].indices:
                walk(index)
            return WalkResult.SKIP
        if value.op.name == "tirx.cuda.func_call":
            for argument, access in zip(value.args[1:], _signature(value), strict=False):
                if access is not None and isinstance(argument, tvm.ir.Call) and argument.op.name == "tirx.address_of":
                    pointer = pointers.get(argument.args[0].source)
                    loaded.update([pointer] * ("read" in access))
                    stored.update([pointer] * ("write" in access))
        return WalkResult.ADVANCE

    def walk(node: Any) -> None:
        callbacks = [
            (tirx.DeclBuffer, declare),
            (tvm.ir.TensorLoad, load),
            (tirx.BufferStore, store),
            (tvm.ir.Call, call),
        ]
        structural_walk(node, callbacks, order="pre")

    walk(device.body)
    return {p: "read" if p not in stored else "read_write" if p in loaded else "write" for p in device.params}


def _signature(call: tvm.ir.Call) -> Iterator[Access | None]:
    """What a function of CUDA source does with each parameter: reads what is constant, writes a `destination`."""
    name, source = call.args[0].value, call.args[-1].value
    found = re.search(rf"\b{name}\(([^()]*)\) {{", source)
    assert found is not None, source
    for parameter in found[1].split(","):
        if "*" not in parameter:
            yield None
        elif parameter.strip().startswith("const "):
            yield "read"
        else:
            yield "write" if parameter.endswith("destination") else "read_write"


def _calls(device: tirx.PrimFunc, what: str) -> bool:
    """Whether a device function calls one with this instruction in its source."""
    found = False

    def visit(call: tvm.ir.Call) -> None:
        nonlocal found
        found |= call.op.name == "tirx.cuda.func_call" and what in call.args[-1].value

    structural_walk(device.body, [(tvm.ir.Call, visit)], order="pre")
    return found


def requirements(compute_capability: int, kernels: Mapping[str, Kernel], split: tvm.IRModule) -> Requirements:
    """What all these kernels together take of a GPU of NVIDIA's."""
    devices = [split[name] for name in kernels]
    return Requirements(
        compute_capability=compute_capability,
        subgroup_width=32,
        matrix_unit=any(_calls(device, "mma.") for device in devices),
        integer_dot=any(_calls(device, "dp4a") for device in devices),
        workgroup_threads=max(math.prod(kernel.block) for kernel in kernels.values()),
        workgroup_bytes=max(shared_bytes(device.body, "shared") for device in devices),
        buffers=max(len(kernel.buffers) for kernel in kernels.values()),
    )
