"""From a checkpoint to the weights of a model folder, in parts that are made by themselves."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from gecko_mlc import __version__
from gecko_mlc.config import GeckoConfig
from gecko_mlc.convert.derived import (
    CEMA_PARAMETERS,
    cema_coefficients,
    cema_name,
    derived_shapes,
    rope_tables,
)
from gecko_mlc.convert.shards import Part, Progress, Say, write_weights
from gecko_mlc.convert.tensors import Checkpoint, Renamed
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.group_quantization import GroupQuantization
from gecko_mlc.formats.library import TensorSpec, quantized_specs
from gecko_mlc.formats.quantization import Quantization
from gecko_mlc.formats.weights import NUMPY_DTYPES

_EMBEDDING, _HEAD = "embed.weight", "output.output.weight"
# What parameters are read from.
_FLOATS = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]


def convert_weights(
    config: GeckoConfig,
    checkpoint: Checkpoint,
    quantization: Quantization,
    output: Path,
    progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
    command: str = "gecko-mlc convert_weight",
) -> None:
    """Write `tensor-cache.json` and its shards into the folder `output`.

    Weight matrices take the quantization's dtype, or become codes and scales; everything else, and the constants
    derived from it, is fp32. The folder's other files stay, and its old weights until the new ones are complete. What
    was interrupted goes on where it was; `command` does that for whoever finds the folder. Raises `GeckoError` before
    anything is written when tensors are missing, unknown or misshapen, when another conversion writes into the folder
    or the disk is too small, and when a value is not finite, or not in its new dtype. `progress` is told bytes done and
    bytes in all.
    """
    checkpoint = _tied(config, checkpoint)
    _check_names(config, checkpoint)
    parts = list(_parts(config, checkpoint, quantization))
    identity = [__version__, config.model_dump(), quantization.name, checkpoint.identity]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    write_weights(output, parts, config.num_parameters(), digest, command, progress, say)


def _tied(config: GeckoConfig, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with an embedding that is shared by its own name, under whichever of the two it was saved."""
    if not config.share_emb or _EMBEDDING in checkpoint.tensors or _HEAD not in checkpoint.tensors:
        return checkpoint
    return Renamed(checkpoint, {_EMBEDDING if name == _HEAD else name: name for name in checkpoint.tensors})


def _check_names(config: GeckoConfig, checkpoint: Checkpoint) -> None:
    expected = {p.name: p.shape for p in config.parameters()}
    if config.share_emb and _HEAD in checkpoint.tensors:
        expected[_HEAD] = expected[_EMBEDDING]
    missing = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in checkpoint.tensors]
    unknown, unfit = [], []
    for name, (shape, dtype) in checkpoint.tensors.items():
        if ".prior_" in name:
            if math.prod(shape) > config.model_dim or np.any(checkpoint.read(name)):
                unfit.append(f"{name} is not zero; priors are the initial state and only 0 is known")
        elif name == "rope.freqs":
            continue
        elif name not in expected:
            unknown.append(f"{name} {list(shape)} is not a parameter of this config")
        elif shape != expected[name]:
            hint = " (transposed?)" if shape == expected[name][::-1] else ""
            unfit.append(f"{name} is {list(shape)}, expected {list(expected[name])}{hint}")
        elif dtype not in _FLOATS:
            unfit.append(f"{name} is {dtype}, expected {', '.join(map(str, _FLOATS))} or float8 with its scales")
    if faults := [fault for group in (unfit, missing, unknown) for fault in _shortened(group)]:
        raise GeckoError("the checkpoint does not fit the config: " + "; ".join(faults))
    tied = config.share_emb and _HEAD in expected
    if tied and not np.array_equal(checkpoint.read(_HEAD), checkpoint.read(_EMBEDDING)):
        raise GeckoError(f"share_emb=true, but {_HEAD} differs from {_EMBEDDING}")


def _shortened(faults: list[str]) -> list[str]:
    """The first of faults of a kind, and how many more there are."""
    return faults if len(faults) <= 5 else [*faults[:4], f"and so on, {len(faults)} in all"]


def _parts(config: GeckoConfig, checkpoint: Checkpoint, quantization: Quantization) -> Iterator[Part]:
    """Derived constants and parameters, in the order of the state_dict."""
    derived = {name: TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in derived_shapes(config)}
    yield Part((derived["rope.cos"], derived["rope.sin"]), partial(rope_tables, config))
    for parameter in config.parameters():
        if parameter.matrix and quantization.group is not None:
            outputs, inputs = parameter.shape
            specs = quantized_specs(parameter.name, outputs, inputs, quantization.group)
            yield Part(specs, partial(_quantized, parameter.name, checkpoint, quantization.group))
        else:
            dtype = quantization.model_dtype if parameter.matrix else "float32"
            spec = TensorSpec(name=parameter.name, shape=parameter.shape, dtype=dtype)
            yield Part((spec,), partial(_cast, parameter.name, checkpoint, dtype))
        if parameter.name.endswith(".cema.gamma"):
            prefix = parameter.name.removesuffix("gamma")
            spec = derived[cema_name(int(prefix.split(".")[1]))]
            yield Part((spec,), partial(_coefficients, prefix, checkpoint))


def _coefficients(prefix: str, checkpoint: Checkpoint) -> tuple[np.ndarray]:
    return (cema_coefficients(*(checkpoint.read(prefix + leaf) for leaf in CEMA_PARAMETERS)),)


def _quantized(name: str, checkpoint: Checkpoint, group: GroupQuantization) -> tuple[np.ndarray, np.ndarray]:
    value = checkpoint.read(name)
    try:
        return group.quantize(value)
    except ValueError:
        raise _unfit(name, value, group.scale_dtype) from None


def _cast(name: str, checkpoint: Checkpoint, dtype: str) -> tuple[np.ndarray]:
    value = checkpoint.read(name)
    with np.errstate(over="ignore"):
        cast = value.astype(NUMPY_DTYPES[dtype], copy=False)
    # Blocks of rows, as the check makes temporaries.
    if all(np.isfinite(cast[start : start + 4096]).all() for start in range(0, len(cast), 4096)):
        return (cast,)
    raise _unfit(name, value, dtype)


def _unfit(name: str, value: np.ndarray, dtype: str) -> GeckoError:
    largest = float(np.abs(value.astype(np.float64)).max())
    if np.isfinite(largest):
        return GeckoError(f"{name}: {largest:g} does not fit into {dtype}; convert to q0bf16 or q0f32")
    return GeckoError(f"{name}: not all values are finite")
