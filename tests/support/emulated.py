"""A library whose functions are played on this machine's CPU, launch by launch, as a GPU's virtual machine does."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tvm
from tvm import relax

from gecko_mlc.compile.pipeline import export, lower
from gecko_mlc.compile.target import compile_target
from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.library import Metadata, functions_of
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.model import Build
from gecko_mlc.state import state_tensors
from support.launch_cuda import launch_cuda
from support.player import NumPyPlayer


class EmulatedLibrary:
    """What `Engine` needs of a `Library`."""

    def __init__(self, config: GeckoConfig, scheme: str, slots: int, state_dtype: str | None = None) -> None:
        target, dtypes = compile_target("cuda", architectures="sm_80,sm_90"), quantization(scheme, state_dtype)
        build = Build(config, dtypes, target.machine, slots, target.launches)
        module, parameters = export(build, config.chunk_size)
        self._module = lower(module)
        tile = target.machine.absorb_tile
        self.player = NumPyPlayer({name: functools.partial(self._play, name) for name in functions_of(tile)})
        self.metadata = Metadata(
            abi_version=ABI_VERSION,
            model_type="gecko",
            config=config.model_dump(),
            quantization=scheme,
            state_dtype=dtypes.state_dtype,
            target=target.spec,
            max_batch_size=slots,
            prefill_chunk_size=config.chunk_size,
            absorb_tile=tile,
            parameters=parameters,
            state=tuple(state_tensors(config, dtypes, target.machine)),
            workspace_bytes={},
            tvm_version=tvm.__version__,
        )

    def _play(self, name: str, *arguments: Any) -> None:
        function = self._module[name]
        values: dict[Any, Any] = {}
        extents: dict[str, int] = {}
        for parameter, argument in zip(function.params, arguments, strict=True):
            values[parameter] = argument
            extents.update(
                (extent.name, size)
                for extent, size in zip(parameter.ty.shape.values, values[parameter].shape, strict=True)
                if isinstance(extent, tvm.ir.Var)
            )
        for block in function.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._run(binding.value, values, extents)

    def _run(self, value: Any, values: dict[Any, Any], extents: dict[str, int]) -> Any:
        if isinstance(value, relax.Var):
            return values[value]
        if not isinstance(value, relax.Call):
            return None
        if isinstance(value.op, tvm.ir.GlobalVar):
            launch_cuda(self._module[value.op], *(values[argument] for argument in value.args))
            return None
        if value.op.name == "relax.memory.alloc_storage":
            # NaN, so that reading what was not written shows.
            return np.full(int(value.args[0].values[0]), 255, np.uint8)
        assert value.op.name in ("relax.memory.alloc_tensor", "relax.memory.kill_storage", "relax.memory.kill_tensor")
        if value.op.name != "relax.memory.alloc_tensor":
            return None
        storage, offset = values[value.args[0]], int(value.args[1].value)
        shape = [extents[e.name] if isinstance(e, tvm.ir.Var) else int(e) for e in value.args[2].values]
        dtype = NUMPY_DTYPES[str(value.args[3].value)]
        return storage[offset : offset + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
