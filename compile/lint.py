"""Checks of what TVM would get wrong in silence: a function's use of state, and a launch plan's use of memory.

State is checked in the exported functions, where every launch is a `call_tir` or `call_tir_inplace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import tvm
from tvm import relax, tirx
from tvm_ffi import structural_walk

from gecko_mlc.formats.launches import Region, overlap
from gecko_mlc.formats.plan import Plan
from gecko_mlc.tir_kernels.hardware import CUDA

# CUDA's bounds of a grid's and a block's y and z.
_GRID_YZ, _BLOCK_Z = 65535, 64


def check_state_use(module: tvm.IRModule) -> list[str]:
    """Faults of the Relax functions of `module`, a line each; none is good.

    Stale reads: a launch reads a tensor through an alias that is not its newest. Lost writes: the newest
    alias of a written tensor is not returned, so a pass may delete the launch. Returned values that alias
    no argument. Launches that write what they do not declare. Operators other than launches.
    """
    faults = []
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            faults += [f"{variable.name_hint}: {fault}" for fault in _check(module, function)[0]]
    return faults


def declared_writes(module: tvm.IRModule) -> dict[str, set[str]]:
    """The arguments that the launches of each Relax function declare to write."""
    return {
        variable.name_hint: {argument.name for argument in _check(module, function)[1]}
        for variable, function in module.functions_items()
        if isinstance(function, relax.Function)
    }


def check_plan(plan: Plan, declared: Mapping[str, Set[str]]) -> list[str]:
    """Faults of a plan that can be played, a line each; none is good. `declared` are the arguments that each function
    may write.

    Launches that read storages or results that no launch before has written, or that one has overwritten since.
    Results, and declared state, that nothing writes; state that is written and not declared. Kernels that nothing
    launches. More than a GPU bears: of a grid, of a block, of shared memory.
    """
    faults = [*_beyond_limits(plan)]
    launched = {launch.kernel for function in plan.functions.values() for launch in function.launches}
    faults += [f"nothing launches {name}" for name in plan.kernels if name not in launched]
    for name, function in plan.functions.items():
        found: dict[str, None] = {}
        for size in _sizes(max((plan.bounds[symbol] for symbol in function.symbols), default=1)):
            found.update(dict.fromkeys(_check_call(plan, name, size, declared[name])))
        faults += [f"{name}: {fault}" for fault in found]
    return faults


def _sizes(bound: int) -> set[int]:
    """Powers of two and the bound: what the number of rows chooses, it chooses at a factor of them."""
    return {1 << i for i in range(bound.bit_length())} | {bound}


def _beyond_limits(plan: Plan) -> Iterator[str]:
    shared = CUDA((plan.requires.compute_capability,)).shared_memory
    if plan.requires.workgroup_bytes > shared:
        yield f"{plan.requires.workgroup_bytes} bytes of shared memory of {shared}"
    for name, kernel in plan.kernels.items():
        if kernel.block[2] > _BLOCK_Z:
            yield f"{name}: a block of {kernel.block}"


def _check_call(plan: Plan, name: str, size: int, declared: Set[str]) -> Iterator[str]:
    function = plan.functions[name]
    alive: set[Region] = set()
    overwritten: dict[Region, int] = {}
    written_tensors: set[tuple[str, int]] = set()
    for i, launch in enumerate(plan.launches(name, **dict.fromkeys(function.symbols, size))):
        where = f"launch {i}, {launch.kernel},"
        if max(launch.grid[1:]) > _GRID_YZ:
            yield f"{where} has a grid of {launch.grid}"
        accesses = list(zip(launch.buffers, plan.kernels[launch.kernel].buffers, strict=True))
        for region, access in accesses:
            if access == "write" or region.role not in ("storage", "result") or region in alive:
                continue
            why = f"launch {overwritten[region]} has overwritten" if region in overwritten else "nothing has written"
            yield f"{where} reads {region.role} {region.item} from byte {region.offset}, which {why}"
        for region in (region for region, access in accesses if access != "read"):
            written_tensors.add((region.role, region.item))
            for other in [other for other in alive if other != region and overlap(other, region)]:
                alive.remove(other)
                overwritten[other] = i
            alive.add(region)
    for index, argument in enumerate(function.arguments):
        if argument.role == "result" and ("result", index) not in written_tensors:
            yield f"nothing writes {argument.name}"
    for index, tensor in enumerate(plan.state):
        if (("state", index) in written_tensors) != (tensor.name in declared):
            verb = "declares and does not write" if tensor.name in declared else "writes and does not declare"
            yield f"it {verb} {tensor.name}"


def written_arguments(kernel: tirx.PrimFunc) -> set[int]:
    """The positions of the arguments that a kernel stores to."""
    position = {parameter: i for i, parameter in enumerate(kernel.params)}
    views: dict[tvm.ir.Var, tvm.ir.Var] = {}
    written: set[int] = set()

    def view(declaration: tirx.DeclBuffer) -> None:
        views[declaration.buffer] = declaration.data.args[0]

    def store(statement: tirx.BufferStore) -> None:
        buffer = views.get(statement.buffer, statement.buffer)
        if buffer in position:
            written.add(position[buffer])

    # Before the children: a view is declared ahead of the stores to it.
    structural_walk(kernel.body, [(tirx.DeclBuffer, view), (tirx.BufferStore, store)], order="pre")
    return written


def _check(module: tvm.IRModule, function: relax.Function) -> tuple[list[str], set[relax.Var]]:
    """Faults, and the arguments that launches declare to write."""
    faults: list[str] = []
    # The argument that a variable is an alias of, and the newest alias of each argument.
    root = {parameter: parameter for parameter in function.params}
    newest = {parameter: parameter for parameter in function.params}
    tuples: dict[relax.Var, list[relax.Var | None]] = {}
    returned: list[relax.Var] = []
    written: set[relax.Var] = set()

    def launch(binding: relax.Var, call: relax.Call) -> None:
        kernel_name, arguments = call.args[0], list(call.args[1].fields)
        name = kernel_name.name_hint
        for argument in arguments:
            if argument in root and not newest[root[argument]].same_as(argument):
                faults.append(f"{name} reads {root[argument].name} through a stale alias")
        indices: list[int] = []
        if call.op.name == "relax.call_tir_inplace":
            indices = [int(i) for i in call.attrs.inplace_indices]
        declared = {i for i in indices if i >= 0}
        actual = {i for i in written_arguments(module[kernel_name]) if i < len(arguments)}
        for i in actual - declared:
            faults.append(f"{name} writes its argument {i} without declaring it")
        aliased = [root.get(arguments[i]) if i >= 0 else None for i in indices]
        single = len(indices) == 1
        tuples[binding] = aliased
        if single and aliased[0] is not None:
            bind(binding, aliased[0])

    def bind(variable: relax.Var, argument: relax.Var) -> None:
        root[variable] = argument
        newest[argument] = variable
        written.add(argument)

    for block in function.body.blocks:
        for binding in block.bindings:
            variable, value = binding.var, binding.value
            if isinstance(value, relax.Call) and value.op.name.startswith("relax.call_tir"):
                launch(variable, value)
            elif isinstance(value, relax.TupleGetItem):
                aliased = tuples.get(value.tuple_value, [])
                argument = aliased[value.index] if value.index < len(aliased) else None
                if argument is not None:
                    bind(variable, argument)
            elif isinstance(value, relax.Tuple):
                tuples[variable] = [root.get(field) for field in value.fields]
                returned = list(value.fields)
            elif isinstance(value, relax.Var) and value in root:
                root[variable] = root[value]
                newest[root[value]] = variable
            elif isinstance(value, relax.Var) and value in tuples:
                tuples[variable] = tuples[value]
            elif not isinstance(value, relax.Var):
                faults.append(f"{variable.name} is not a launch")
    for value in returned:
        if value not in root:
            faults.append(f"returns {value.name}, which aliases no argument")
    for argument in written:
        if newest[argument] not in returned:
            faults.append(f"the newest write of {argument.name} is not returned")
    return faults, written
