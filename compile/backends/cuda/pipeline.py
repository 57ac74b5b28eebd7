"""Lowering of TensorIR that is bound to blocks and threads, for CUDA.

A kernel stays what it says: TVM's passes that shrink buffers, share their storage or insert barriers see
nothing of what a device function does through an address, so they are left out. A kernel has its own
barriers, and at most one buffer in `shared.dyn`.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_mutate, structural_walk

PIPELINE = "gecko_cuda"
_OVERLAPPED_LAUNCH = "tirx.use_programtic_dependent_launch"  # TVM's spelling
_DYNAMIC_SHARED_MEMORY = "tirx.use_dyn_shared_memory"
_LAUNCH_PARAMETERS = "tirx.kernel_launch_params"


@tvm.transform.module_pass(opt_level=0, name="OverlapLaunches")
class OverlapLaunches:
    """Let a kernel that waits for its predecessor start before that has ended."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass; after `LowerDeviceKernelLaunch`, a part of `SplitHostDevice`."""
        waiting = set()
        for variable, function in module.functions_items():
            tags = function.attrs.get(_LAUNCH_PARAMETERS) if isinstance(function, tirx.PrimFunc) else None
            if tags is not None and "gecko_wait_for_predecessor" in _device_functions(function):
                waiting.add(variable.name_hint)
                # The compiler takes what a kernel only reads, and nothing is an alias of, as constant while it runs:
                # it would come from caches that do not know what the predecessor wrote.
                function = function.with_attr("tirx.noalias", False)
                module[variable] = function.with_attr(_LAUNCH_PARAMETERS, _with_overlap(tags))

        def launch(call: tvm.ir.Call, mutator: Any) -> tvm.ir.Call:
            if call.op.name != "tirx.call_ffi_kernel" or call.args[0].value not in waiting:
                return mutator.default_mutate(call)
            tags = _with_overlap(call.attrs.launch_params)
            attributes = tvm.ir.make_node("tirx.CallFFIKernelAttr", launch_params=tags)
            return tvm.ir.Call(call.op, call.args, attributes, ret_ty=call.ty)

        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and _LAUNCH_PARAMETERS not in function.attrs:
                module[variable] = function.with_body(structural_mutate(function.body, [(tvm.ir.Call, launch)]))
        return module


def _with_overlap(tags: Any) -> list[str]:
    """The tag of dynamic shared memory stays last."""
    tags = [str(tag) for tag in tags]
    last = len(tags) - (_DYNAMIC_SHARED_MEMORY in tags)
    return [*tags[:last], _OVERLAPPED_LAUNCH, *tags[last:]]


def _device_functions(function: tirx.PrimFunc) -> set[str]:
    names: set[str] = set()

    def visit(call: tvm.ir.Call) -> None:
        names.update(a.value for a in call.args if isinstance(a, tvm.ir.StringImm))

    structural_walk(function.body, [(tvm.ir.Call, visit)], order="pre")
    return names


def _lower() -> tuple[Any, Any, Any]:
    passes = tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LiftThreadBinding(),
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            tirx.transform.CommonSubexprElim(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            OverlapLaunches(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.BF16StorageLegalize(),
        ]
    )
    return passes, s_tir.pipeline.finalize_host_passes, s_tir.pipeline.finalize_device_passes


tirx.register_tir_pipeline(PIPELINE, _lower)
