"""From the model's Relax functions to a virtual machine executable."""

from __future__ import annotations

import tvm
from tvm import relax

from gecko_mlc.abi import FUNCTIONS, PARAMETRIC_FUNCTIONS
from gecko_mlc.model import Build, Gecko
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec as nn_spec


def export(build: Build, prefill_chunk_size: int) -> tuple[tvm.IRModule, list[tuple[str, nn.Parameter]]]:
    """The functions of `gecko_mlc.abi` as a Relax module, and the parameters in order.

    Each takes its inputs, then the state, then (if it uses them) the parameters.
    """
    model = Gecko(build)
    state = [nn_spec.Tensor([build.slots, *s.shape], s.dtype) for s in model.specs]
    methods = {}
    for name, inputs in FUNCTIONS.items():
        arguments = [argument[:-1].split("[") for argument in inputs]
        shapes = [[int(extent) if extent.isdigit() else extent] for _, extent in arguments]
        methods[name] = nn_spec.MethodSpec(
            getattr(model, name),
            [argument for argument, _ in arguments] + [s.name for s in model.specs],
            [nn_spec.Tensor(shape, "int32") for shape in shapes] + state,
            param_mode="plain" if name in PARAMETRIC_FUNCTIONS else "none",
            effect_mode="none",
        )
    module_spec = nn_spec.ModuleSpec(model, list(methods), list(methods.values()))
    module, parameters = model.export_tvm(module_spec)
    bounds = {"n": prefill_chunk_size, "b": build.slots}
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            inputs = len(FUNCTIONS[variable.name_hint])
            # Static are all arguments but the inputs; export counts the state among the inputs.
            function = function.with_attr("num_input", inputs).with_attr("tir_var_upper_bound", bounds)
            module[variable] = function
    return module, parameters
