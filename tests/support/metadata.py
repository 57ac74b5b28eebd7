"""What libraries would say of themselves."""

from __future__ import annotations

from gecko_mlc.config import preset
from gecko_mlc.convert.derived import CEMA_PARAMETERS, derived_shapes
from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.formats.library import Metadata, Parameter, TargetSpec
from gecko_mlc.formats.quantization import Quantization, quantization
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.state import state_tensors
from gecko_mlc.tir_kernels.hardware import CPU, CUDA

CHUNK = 2048


def metadata(name: str = "gecko-7b", kind: str = "cuda", scheme: Quantization = quantization("q0bf16")) -> Metadata:
    """What a library of a preset would say of itself."""
    config, machine = preset(name), CUDA((90,)) if kind == "cuda" else CPU()
    matrices = machine.weight_format(scheme.group) if scheme.group is not None else Dense(scheme.model_dtype)
    parameters = [
        Parameter(name=p.name, shape=matrices.shape(*p.shape), dtype=matrices.dtype)
        if p.matrix
        else Parameter(name=p.name, shape=p.shape, dtype="float32")
        for p in config.parameters()
        if p.name.split(".")[-1] not in CEMA_PARAMETERS or ".cema." not in p.name
    ]
    parameters += [Parameter(name=name, shape=shape, dtype="float32") for name, shape in derived_shapes(config)]
    return Metadata(
        abi_version=ABI_VERSION,
        model_type="gecko",
        config=config.model_dump(),
        quantization=scheme.name,
        state_dtype=scheme.state_dtype,
        target=TargetSpec(kind="cpu", triple="x86_64-linux-gnu", mcpu="x86-64-v3", features=()),
        max_batch_size=1,
        prefill_chunk_size=CHUNK,
        absorb_tile=machine.absorb_tile,
        parameters=tuple(parameters),
        state=tuple(state_tensors(config, scheme, machine)),
        workspace_bytes={},
        tvm_version="",
    )
