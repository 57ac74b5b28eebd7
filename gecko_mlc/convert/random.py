"""Checkpoints of random weights, for benchmarks and tests: deterministic by seed, written as a stream."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

from gecko_mlc.config import GeckoConfig, ParameterSpec, dump_config
from gecko_mlc.formats.files import atomic_write
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.reference.init_weights import initial_value

SHARD_BYTES = 2 * 2**30
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_random_checkpoint(
    config: GeckoConfig,
    output: Path,
    dtype: str = "float32",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `config.json` and sharded `.safetensors` with their index into the folder `output`.

    Matrices are of `dtype`, everything else fp32. The same seed gives the same bytes. Memory holds one
    tensor. `progress` is told bytes done and bytes in all.
    """
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "config.json") as file:
        file.write(dump_config(config))
    shards: list[list[ParameterSpec]] = [[]]
    filled = 0
    for parameter in config.parameters():
        size = _nbytes(parameter, dtype)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(parameter)
        filled += size
    total = sum(_nbytes(parameter, dtype) for parameter in config.parameters())
    done, weight_map = 0, {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for parameter in shard:
            header[parameter.name] = {
                "dtype": _SAFETENSORS_NAMES[_dtype(parameter, dtype)],
                "shape": list(parameter.shape),
                "data_offsets": [offset, offset + _nbytes(parameter, dtype)],
            }
            offset += _nbytes(parameter, dtype)
            weight_map[parameter.name] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(output / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for parameter in shard:
                value = initial_value(config, parameter, seed)
                value.astype(NUMPY_DTYPES[_dtype(parameter, dtype)], copy=False).tofile(file)
                done += _nbytes(parameter, dtype)
                progress(done, total)
    with atomic_write(output / "model.safetensors.index.json") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=2)


def _dtype(parameter: ParameterSpec, dtype: str) -> str:
    return dtype if parameter.matrix else "float32"


def _nbytes(parameter: ParameterSpec, dtype: str) -> int:
    return math.prod(parameter.shape) * int(NUMPY_DTYPES[_dtype(parameter, dtype)].itemsize)
