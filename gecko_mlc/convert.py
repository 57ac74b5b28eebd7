"""From a checkpoint to the weights of a model folder, a tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gecko_mlc.checkpoint import Checkpoint
from gecko_mlc.config import GeckoConfig, ParameterSpec
from gecko_mlc.derived import (
    CEMA_PARAMETERS,
    cema_coefficients,
    cema_name,
    derived_shapes,
    rope_tables,
)
from gecko_mlc.quantization import Quantization
from gecko_mlc.runtime.errors import GeckoError
from gecko_mlc.runtime.files import atomic_write
from gecko_mlc.runtime.parameters import NUMPY_DTYPES, TENSOR_CACHE

SHARD_BYTES = 32 * 2**20
Progress = Callable[[int, int], None]


def convert_weights(
    config: GeckoConfig,
    checkpoint: Checkpoint,
    quantization: Quantization,
    output: Path,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write `tensor-cache.json` and its shards into the folder `output`.

    Weight matrices take the quantization's dtype; everything else, and the constants derived from it, is
    fp32. The folder's other files stay, and its old weights until the new ones are complete. Raises
    `GeckoError` before anything is written when tensors are missing, unknown or misshapen, and when a
    value is not finite, or not in its new dtype. `progress` is told bytes done and bytes in all.
    """
    _check_names(config, checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".convert-") as folder:
        writer = ShardWriter(Path(folder))
        total = sum(int(np.prod(p.shape)) * _dtype(p, quantization).itemsize for p in config.parameters()) + sum(
            4 * int(np.prod(shape)) for _, shape in derived_shapes(config)
        )
        for name, array in _tensors(config, checkpoint, quantization):
            writer.add(name, array)
            progress(writer.total_bytes, total)
        index = writer.finish(config.num_parameters())
        # Without its index a folder says that it is incomplete; the new one comes last.
        (output / TENSOR_CACHE).unlink(missing_ok=True)
        for old in output.glob("params_shard_*.bin"):
            old.unlink()
        for shard in Path(folder).iterdir():
            os.replace(shard, output / shard.name)
    with atomic_write(output / TENSOR_CACHE) as file:
        json.dump(index, file, indent=2)


def _check_names(config: GeckoConfig, checkpoint: Checkpoint) -> None:
    expected = {p.name: p.shape for p in config.parameters()}
    if config.share_emb and "output.output.weight" in checkpoint.shapes:
        expected["output.output.weight"] = expected["embed.weight"]
        if not np.array_equal(checkpoint.read("output.output.weight"), checkpoint.read("embed.weight")):
            raise GeckoError("share_emb=true, but output.output.weight differs from embed.weight")
    faults = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in checkpoint.shapes]
    for name, shape in checkpoint.shapes.items():
        if ".prior_" in name:
            if np.any(checkpoint.read(name)):
                faults.append(f"{name} is not zero; priors are the initial state and only 0 is known")
        elif name == "rope.freqs":
            continue
        elif name not in expected:
            faults.append(f"{name} {list(shape)} is not a parameter of this config")
        elif shape != expected[name]:
            hint = " (transposed?)" if shape == expected[name][::-1] else ""
            faults.append(f"{name} is {list(shape)}, expected {list(expected[name])}{hint}")
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise GeckoError("the checkpoint does not fit the config: " + "; ".join(faults[:8]) + more)


def _dtype(parameter: ParameterSpec, quantization: Quantization) -> Any:
    return NUMPY_DTYPES[quantization.model_dtype if parameter.matrix else "float32"]


def _tensors(
    config: GeckoConfig, checkpoint: Checkpoint, quantization: Quantization
) -> Iterator[tuple[str, np.ndarray]]:
    """Derived constants and parameters, in the order of the state_dict."""
    cos, sin = rope_tables(config)
    yield "rope.cos", cos
    yield "rope.sin", sin
    for parameter in config.parameters():
        value = checkpoint.read(parameter.name)
        if parameter.matrix and quantization.group is not None:
            prefix = parameter.name.removesuffix("weight")
            q_weight, q_scale = quantization.group.quantize(value)
            yield f"{prefix}q_weight", q_weight
            yield f"{prefix}q_scale", q_scale
        else:
            yield parameter.name, _cast(parameter, value, quantization)
        if parameter.name.endswith(".cema.gamma"):
            prefix = parameter.name.removesuffix("gamma")
            values = (checkpoint.read(prefix + leaf) for leaf in CEMA_PARAMETERS)
            layer = int(prefix.split(".")[1])
            yield cema_name(layer), cema_coefficients(*values)


def _cast(parameter: ParameterSpec, value: np.ndarray, quantization: Quantization) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(_dtype(parameter, quantization), copy=False)
    # Blocks of rows, as the check makes temporaries.
    for start in range(0, len(cast), 4096):
        if not np.isfinite(cast[start : start + 4096]).all():
            if np.isfinite(value.astype(np.float64)).all():
                largest = float(np.abs(value.astype(np.float64)).max())
                raise GeckoError(
                    f"{parameter.name}: {largest:g} does not fit into {cast.dtype}; convert to q0bf16 or q0f32"
                )
            raise GeckoError(f"{parameter.name}: not all values are finite")
    return cast


class ShardWriter:
    """Packs tensors into shards of 32 MiB, a larger tensor into one of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[tuple[str, np.ndarray]] = []
        self._shards: list[dict[str, Any]] = []
        self.total_bytes = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Append a tensor; full shards are written."""
        if sum(a.nbytes for _, a in self._pending) + array.nbytes > SHARD_BYTES:
            self._flush()
        self._pending.append((name, array))
        self.total_bytes += array.nbytes
        if array.nbytes >= SHARD_BYTES:
            self._flush()

    def finish(self, parameters: int) -> dict[str, Any]:
        """Write what is left; the content of `tensor-cache.json`."""
        self._flush()
        return {
            "metadata": {
                "ParamSize": sum(len(shard["records"]) for shard in self._shards),
                "ParamBytes": float(self.total_bytes),
                "BitsPerParam": 8.0 * self.total_bytes / parameters,
            },
            "records": self._shards,
        }

    def _flush(self) -> None:
        if not self._pending:
            return
        name = f"params_shard_{len(self._shards)}.bin"
        records, offset, digest = [], 0, hashlib.md5()
        with (self._folder / name).open("wb") as file:
            for tensor, array in self._pending:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                file.write(data)
                digest.update(data)
                records.append(
                    {
                        "name": tensor,
                        "shape": list(array.shape),
                        "dtype": str(array.dtype),
                        "format": "raw",
                        "nbytes": array.nbytes,
                        "byteOffset": offset,
                    }
                )
                offset += array.nbytes
        self._shards.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": offset,
                "md5sum": digest.hexdigest(),
                "records": records,
            }
        )
        self._pending = []


def free_bytes(folder: Path) -> int:
    """The space left on the disk that `folder` is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
