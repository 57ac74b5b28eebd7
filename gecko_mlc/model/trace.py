"""What launches are made with: the build, the state's newest aliases, and the function being traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tvm import tirx
from tvm.relax.frontend.nn import Tensor, op

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.group_quantization import Dense, WeightFormat
from gecko_mlc.formats.library import StateTensor
from gecko_mlc.formats.quantization import Quantization
from gecko_mlc.tir_kernels.hardware import Hardware
from gecko_mlc.tir_kernels.phase import Phase


class Build(NamedTuple):
    """What decides the kernels of a library: the model, its dtypes, the machine, the slots, and `launches`, the class
    whose methods launch the parts of a function."""

    config: GeckoConfig
    quantization: Quantization
    hardware: Hardware
    slots: int
    launches: type[Any]

    @property
    def value_tensors(self) -> tuple[str, ...]:
        """The state tensors of a layer that hold its values, as kernels take them."""
        return ("values", "value_scales") if self.quantization.state_dtype == "int8" else ("values",)

    @property
    def weight_format(self) -> WeightFormat:
        """How weight matrices lie in memory."""
        group = self.quantization.group
        if group is None:
            return Dense(self.quantization.model_dtype)
        return self.hardware.weight_format(group)


class State:
    """The state tensors inside one function: newest aliases by name."""

    def __init__(self, specs: Sequence[StateTensor], tensors: Sequence[Tensor]) -> None:
        self._tensors = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def update(
        self,
        kernel: tirx.PrimFunc,
        hint: str,
        arguments: Sequence[Tensor | str],
        writes: Sequence[str],
        outputs: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Launch a kernel that writes the state tensors named in `writes`; its fresh outputs.

        Arguments given by name are state. Outputs follow the arguments in the kernel's signature, and what it has for
        itself follows those.
        """
        tensors = [self[a] if isinstance(a, str) else a for a in arguments]
        names = [a if isinstance(a, str) else None for a in arguments]
        new = [*outputs, *_scratch(kernel, len(tensors) + len(outputs))]
        indices = [names.index(name) for name in writes] + [-1] * len(new)
        out = [self[name] for name in writes] + new
        results = _listed(op.tensor_ir_inplace_op(kernel, hint, tensors, indices, out))
        self._tensors.update(zip(writes, results, strict=False))
        return results[len(writes) : len(writes) + len(outputs)]

    def aliases(self) -> list[Tensor]:
        """All newest aliases, in the order of the arguments."""
        return list(self._tensors.values())


class Call(NamedTuple):
    """One function being traced: n rows, what they are, the slots they belong to, and the state."""

    phase: Phase
    n: Any
    slots: Tensor
    state: State


def fresh(*shape: Any, dtype: str = "float32") -> Tensor:
    """The description of a kernel's output."""
    return Tensor.placeholder(list(shape), dtype)


def launch(kernel: tirx.PrimFunc, hint: str, arguments: Sequence[Tensor], output: Tensor) -> Tensor:
    """Launch a kernel that writes nothing but its fresh output."""
    return launch_all(kernel, hint, arguments, [output])[0]


def launch_all(
    kernel: tirx.PrimFunc, hint: str, arguments: Sequence[Tensor], outputs: Sequence[Tensor]
) -> list[Tensor]:
    """Launch a kernel that writes nothing but its fresh outputs."""
    out = [*outputs, *_scratch(kernel, len(arguments) + len(outputs))]
    return _listed(op.tensor_ir_op(kernel, hint, list(arguments), out))[: len(outputs)]


def _scratch(kernel: tirx.PrimFunc, given: int) -> list[Tensor]:
    """What a kernel has for itself while it runs: its parameters after the `given` arguments and outputs."""
    return [fresh(*(int(extent) for extent in p.shape), dtype=p.dtype) for p in kernel.params[given:]]


def _listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
