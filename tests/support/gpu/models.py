"""Random models on a GPU: their parameters, an engine and the PyTorch reference over them."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference.gecko import Gecko, RotaryEmbedding
from gecko_mlc.reference.init_weights import initial_value, matrix_deviation
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.players import tvm_runtime
from support.gpu.quantize import TORCH_DTYPES, pack
from support.models import derived

Tensors = dict[str, torch.Tensor]


def random_parameters(config: GeckoConfig, dtype: str, device: str = "cuda") -> Tensors:
    """Initial parameters of a fixed seed, made on the device: matrices rounded to `dtype`, the rest fp32."""
    result = {}
    for parameter in config.parameters():
        if parameter.matrix:
            generator = torch.Generator(device).manual_seed(zlib.crc32(parameter.name.encode()))
            value = torch.randn(parameter.shape, generator=generator, device=device)
            result[parameter.name] = (value * matrix_deviation(config, parameter)).to(TORCH_DTYPES[dtype])
        else:
            result[parameter.name] = on_device(device, initial_value(config, parameter, 0))
    return result


def on_device(device: torch.device | str, array: np.ndarray) -> torch.Tensor:
    """A copy, in the layout and alignment that TVM demands."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, copy=True)


def make_engine(library: Library, parameters: Tensors) -> Engine:
    """An engine over parameters that lie on its device already. What is quantized for it changes in `parameters`, to
    what the codes stand for."""
    packed = pack(parameters, library.metadata.parameters)
    ema = {name: value.cpu().numpy() for name, value in parameters.items() if ".cema." in name}
    device = parameters["embed.weight"].device
    constants = derived(GeckoConfig(**library.metadata.config), ema)
    tensors = parameters | packed | {name: on_device(device, value) for name, value in constants.items()}
    convert = tvm_runtime.load().runtime.from_dlpack
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Engine(library, [convert(tensors[spec.name]) for spec in library.metadata.parameters])


def reference_model(config: GeckoConfig, parameters: Tensors) -> Gecko:
    """The PyTorch reference over `parameters`, on their device."""
    with torch.device("meta"):
        model = Gecko(config)
    model.load_state_dict(parameters, assign=True)
    # Its frequencies are no parameter.
    with parameters["embed.weight"].device:
        model.rope = RotaryEmbedding(config)
    return model
