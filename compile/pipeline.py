"""From the model's functions in Relax to straight lines of kernel launches."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec as nn_spec

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.library import FUNCTIONS, PARAMETRIC_FUNCTIONS, Parameter, functions_of
from gecko_mlc.model import Build, Gecko, GroupQuantize


def export(build: Build, prefill_chunk_size: int) -> tuple[tvm.IRModule, tuple[Parameter, ...]]:
    """The functions of `gecko_mlc.formats.library` as a Relax module, and the parameters in order.

    Each takes its inputs, then the state, then (if it uses them) the parameters, and returns the newest
    alias of all it writes.
    """
    model = Gecko(build)
    if isinstance(build.weight_format, GroupLayout):
        model = GroupQuantize(build.weight_format).visit("", model)
    state = [nn_spec.Tensor([build.slots, *s.shape], s.dtype) for s in model.specs]
    methods = {}
    for name, inputs in functions_of(build.hardware.absorb_tile).items():
        specs = [
            nn_spec.Tensor([build.config.num_outputs if e == "outputs" else e for e in i.shape], i.dtype)
            for i in inputs
        ]
        methods[name] = nn_spec.MethodSpec(
            getattr(model, name),
            [i.name for i in inputs] + [s.name for s in model.specs],
            specs + state,
            param_mode="plain" if name in PARAMETRIC_FUNCTIONS else "none",
            effect_mode="none",
        )
    module, parameters = model.export_tvm(nn_spec.ModuleSpec(model, list(methods), list(methods.values())))
    bounds = {"n": prefill_chunk_size, "b": build.slots}
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            # Static are all arguments but the inputs; export counts the state among the inputs.
            function = function.with_attr("num_input", len(FUNCTIONS[variable.name_hint]))
            module[variable] = function.with_attr("tir_var_upper_bound", bounds)
    return module, tuple(_parameter(build, name, parameter) for name, parameter in parameters)


def _parameter(build: Build, name: str, parameter: nn.Parameter) -> Parameter:
    spec = Parameter(name=name, shape=tuple(int(extent) for extent in parameter.shape), dtype=parameter.dtype)
    layout = build.weight_format
    shape = {p.name: p.shape for p in build.config.parameters() if p.matrix}.get(name)
    if shape is None or not isinstance(layout, GroupLayout):
        return spec
    return spec.model_copy(update={"outputs": shape[0], "inputs": shape[1], "layout": layout})


@tvm.transform.module_pass(opt_level=0, name="DropReturns")
class DropReturns:
    """Return nothing: once calls are plain launches, nothing can delete them, and results are in place."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                body = relax.SeqExpr(function.body.blocks, relax.Tuple([]))
                module[variable] = relax.Function(
                    function.params, body, relax.TupleType([]), is_pure=False, attrs=function.attrs
                )
        return module


def lower(module: tvm.IRModule) -> tvm.IRModule:
    """Launches over statically planned storage; what `tests/compile/test_functions.py` looks at."""
    entries = [variable.name_hint for variable, f in module.functions_items() if isinstance(f, relax.Function)]
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            DropReturns(),
            # Launches are impure by now: what goes is the tuples and names they were returned in.
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(entries),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(module)


def build(module: tvm.IRModule, target: tvm.target.Target, tir_pipeline: str | None = None) -> Any:
    """An executable of `lower`'s result, in the virtual machine's own forms of storage and shapes."""
    finished = tvm.transform.Sequential(
        [
            relax.transform.LowerAllocTensor(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )(module)
    with target:
        return relax.build(finished, target, relax_pipeline=None, tir_pipeline=tir_pipeline)
