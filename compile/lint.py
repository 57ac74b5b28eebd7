"""Checks of a function's use of state, which TVM would get wrong in silence.

Run over the exported functions, where every launch is a `call_tir` or `call_tir_inplace`.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm_ffi import structural_walk


def check_state_use(module: tvm.IRModule) -> list[str]:
    """Faults of the Relax functions of `module`, a line each; none is good.

    Stale reads: a launch reads a tensor through an alias that is not its newest. Lost writes: the newest
    alias of a written tensor is not returned, so a pass may delete the launch. Returned values that alias
    no argument. Launches that write what they do not declare. Operators other than launches.
    """
    faults = []
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            faults += [f"{variable.name_hint}: {fault}" for fault in _check(module, function)]
    return faults


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


def _check(module: tvm.IRModule, function: relax.Function) -> list[str]:
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
    return faults
