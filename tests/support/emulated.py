"""A library whose functions are played on this machine's CPU from its launch plan alone."""

from __future__ import annotations

import functools
from typing import Any

import tvm

from gecko_mlc.compile.pipeline import export, lower
from gecko_mlc.compile.plan import kernels_in, make_plan
from gecko_mlc.compile.target import compile_target
from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.library import Metadata, functions_of
from gecko_mlc.formats.plan import dump_plan, parse_plan
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.model import Build
from gecko_mlc.state import state_tensors
from support.launch_cuda import Kernels
from support.play import Player
from support.player import NumPyPlayer


class EmulatedLibrary:
    """What `Engine` needs of a `Library`."""

    def __init__(self, config: GeckoConfig, scheme: str, slots: int, state_dtype: str | None = None) -> None:
        target, dtypes = compile_target("cuda", architectures="sm_80,sm_90"), quantization(scheme, state_dtype)
        build = Build(config, dtypes, target.hardware, slots, target.launches)
        module, parameters = export(build, config.chunk_size)
        tile = target.hardware.absorb_tile
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
            state=tuple(state_tensors(config, dtypes, target.hardware)),
            workspace_bytes={},
            tvm_version=tvm.__version__,
        )
        lowered = lower(module)
        kernels = Kernels(kernels_in(lowered))
        # What it knows of the functions is a text.
        text = dump_plan(make_plan(self.metadata, lowered, kernels.split, target.requirements))
        self.plan = parse_plan(text, "the plan")
        self._player = Player(self.plan, kernels.program)

    def _play(self, name: str, *arguments: Any) -> None:
        inputs = len(self.plan.functions[name].arguments)
        state = inputs + len(self.plan.state)
        self._player.play(name, arguments[:inputs], arguments[inputs:state], arguments[state:])
