"""The compiled functions: straight lines of launches over planned storage, and sound use of state."""

from __future__ import annotations

import pytest
import tvm
from support.models import small_config
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn import spec as nn_spec

from gecko_mlc.compile.lint import check_state_use, written_arguments
from gecko_mlc.compile.pipeline import export, lower
from gecko_mlc.formats.library import functions_of
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.model import Build
from gecko_mlc.model.cpu import CPULaunches
from gecko_mlc.model.cuda import CUDALaunches
from gecko_mlc.tir_kernels.cpu import complex_ema, slots
from gecko_mlc.tir_kernels.hardware import CPU, CUDA
from gecko_mlc.tir_kernels.phase import Phase
from gecko_mlc.tir_kernels.shapes import EMA

# Kernels are made once for the same machine and slots.
CPU, GPU, SLOTS = CPU(), CUDA((80, 90)), 3
LAUNCHES = {CPU: CPULaunches, GPU: CUDALaunches}


@pytest.fixture(
    scope="module",
    params=[(CPU, "q0f32"), (GPU, "q0f32"), (GPU, "q4f16_1")],
    ids=["cpu", "cuda", "cuda-quantized"],
)
def build(request: pytest.FixtureRequest) -> Build:
    machine, scheme = request.param
    return Build(small_config(), quantization(scheme), machine, SLOTS, LAUNCHES[machine])


@pytest.fixture(scope="module")
def exported(build: Build) -> tvm.IRModule:
    return export(build, 8)[0]


@pytest.fixture(scope="module")
def lowered(exported: tvm.IRModule) -> tvm.IRModule:
    return lower(exported)


def test_straight_line(build: Build, exported: tvm.IRModule, lowered: tvm.IRModule) -> None:
    """No allocation but storage of constant size, no packed call, no branch, no host-computed value:
    launches, on arguments or on views of the storage, and not one launch fewer than the model made."""
    for name in functions_of(build.hardware.absorb_tile):
        check_straight_line(name, exported, lowered)


def check_straight_line(name: str, exported: tvm.IRModule, lowered: tvm.IRModule) -> None:
    launches = 0
    for block in lowered[name].body.blocks:
        for binding in block.bindings:
            call = binding.value
            assert isinstance(call, relax.Call), binding
            if isinstance(call.op, tvm.ir.GlobalVar):
                assert isinstance(lowered[call.op], tvm.tirx.PrimFunc)
                assert all(isinstance(a, relax.Var) for a in call.args), binding
                launches += 1
            elif call.op.name == "relax.memory.alloc_storage":
                assert all(isinstance(extent, tvm.tirx.IntImm) for extent in call.args[0].values), binding
            else:
                assert call.op.name == "relax.memory.alloc_tensor", binding
    made = sum(
        isinstance(binding.value, relax.Call) and binding.value.op.name.startswith("relax.call_tir")
        for block in exported[name].body.blocks
        for binding in block.bindings
    )
    assert launches == made > 0
    assert len(lowered[name].body.body.fields) == 0


def test_no_fault_in_the_use_of_state(exported: tvm.IRModule) -> None:
    assert check_state_use(exported) == []


SHAPE = (2, 2, 3, 8)


class Faulty(nn.Module):
    """Functions with the faults that TVM lets pass."""

    def good(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        _, state = self._step(u, slot_ids, state, q)
        return [state]

    def stale_read(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        y, newest = self._step(u, slot_ids, state, q)
        _, again = self._step(y, slot_ids, state, q)
        return [newest, again]

    def lost_write(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        self._step(u, slot_ids, state, q)
        return [slot_ids]

    def undeclared_write(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        kernel = complex_ema.complex_ema(Phase.PREFILL, EMA(8, 3, 2), CPU)
        op.tensor_ir_op(kernel, "ema", [u, q, slot_ids, state], nn.Tensor.placeholder(u.shape, "float32"))
        return [state]

    def not_a_launch(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        _, state = self._step(op.add(u, u), slot_ids, state, q)
        return [state]

    def fresh_result(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> list[nn.Tensor]:
        y, state = self._step(u, slot_ids, state, q)
        return [y, state]

    def _step(self, u: nn.Tensor, slot_ids: nn.Tensor, state: nn.Tensor, q: nn.Tensor) -> tuple[nn.Tensor, nn.Tensor]:
        kernel = complex_ema.complex_ema(Phase.PREFILL, EMA(8, 3, 2), CPU)
        out = [state, nn.Tensor.placeholder(u.shape, "float32")]
        state, y = op.tensor_ir_inplace_op(kernel, "ema", [u, q, slot_ids, state], [3, -1], out)
        return y, state


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("good", None),
        ("stale_read", "through a stale alias"),
        ("lost_write", "the newest write of state is not returned"),
        ("undeclared_write", "writes its argument 3 without declaring it"),
        ("not_a_launch", "is not a launch"),
        ("fresh_result", "aliases no argument"),
    ],
)
def test_the_lint_finds(name: str, fault: str | None) -> None:
    spec = {
        name: {
            "u": nn_spec.Tensor([5, 8], "float32"),
            "slot_ids": nn_spec.Tensor([1], "int32"),
            "state": nn_spec.Tensor(SHAPE, "float32"),
            "q": nn_spec.Tensor([5, 3, 8], "float32"),
            "$": {"param_mode": "none", "effect_mode": "none"},
        }
    }
    module, _ = Faulty().export_tvm(spec)
    faults = check_state_use(module)
    if fault is None:
        assert faults == []
    else:
        assert any(fault in line for line in faults), faults


def test_written_arguments_sees_through_views() -> None:
    assert written_arguments(slots.copy(3, (2, 3), "float32")) == {1}
    assert written_arguments(slots.next_chunk(3)) == {1}


def workspace(function: str, scheme: str, machine: CPU | CUDA, **changes: int) -> int:
    from gecko_mlc.compile.library import workspace_bytes

    build = Build(small_config(**changes), quantization(scheme), machine, SLOTS, LAUNCHES[machine])
    return workspace_bytes(lower(export(build, 8)[0])[function])


@pytest.mark.parametrize(("function", "scheme", "machine"), [("decode", "q0f32", CPU), ("prefill", "q4f16_1", GPU)])
def test_workspace_does_not_grow_with_layers(function: str, scheme: str, machine: CPU | CUDA) -> None:
    sizes = [workspace(function, scheme, machine, num_layers=layers) for layers in (2, 4)]
    assert sizes[0] == sizes[1] > 0


def test_dequantized_weights_share_their_place() -> None:
    config = small_config()
    gate = 2 * 2 * config.ffn_hidden_dim * config.model_dim
    projections = 2 * (config.z_dim + config.value_dim + config.model_dim) * config.model_dim
    dense, quantized = (workspace("prefill", scheme, GPU) for scheme in ("q0f16", "q4f16_1"))
    assert dense < quantized < dense + gate + projections
