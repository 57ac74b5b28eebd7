"""A model folder's weights: MLC's `tensor-cache.json`, the index of its shards, and the dtypes in them.

Everything is checked here before a byte of a shard is used: the files may come from anywhere.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from pydantic import BaseModel, Field

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import check_file, is_plain_name, read_json, validated

TENSOR_CACHE = "tensor-cache.json"

# Where a conversion keeps what it has, and in it the file that tells how to go on.
WORKING_FOLDER = ".conversion"

CONVERSION = "conversion.json"

NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype(np.int32),
    "uint32": np.dtype(np.uint32),
    "int8": np.dtype(np.int8),
}


class TensorRecord(BaseModel):
    """One tensor inside a shard."""

    name: str
    shape: tuple[int, ...] = Field(max_length=8)
    dtype: str
    format: str = "raw"
    nbytes: int = Field(ge=0)
    byteOffset: int = Field(ge=0)

    @property
    def stored_dtype(self) -> Any:
        """The dtype in the shard. In the format f32-to-bf16, `dump_tensor_cache`'s default, fp32 is there as bf16."""
        narrowed = self.format == "f32-to-bf16" and self.dtype == "float32"
        return NUMPY_DTYPES["bfloat16" if narrowed else self.dtype]


class ShardRecord(BaseModel):
    """One shard file. MLC's and TVM's have no sha256."""

    dataPath: str
    format: str
    nbytes: int = Field(ge=0)
    md5sum: str
    sha256: str | None = None
    records: list[TensorRecord]

    def checksums(self) -> list[tuple[str, str]]:
        """Names in hashlib and digests, the fastest first."""
        sums = [("md5", self.md5sum)]
        return sums if self.sha256 is None else [("sha256", self.sha256), *sums]


class TensorCache(BaseModel):
    """The index of all shards."""

    metadata: dict[str, Any]
    records: list[ShardRecord]


def read_tensor_cache(folder: Path) -> TensorCache:
    """The checked index of a model folder's weights.

    Raises `GeckoError` for anything that could read outside a shard or the folder, overlaps, is there twice, or does
    not add up; for a shard that is missing or of another size (cut short, say); and for weights whose conversion has
    not ended.
    """
    check_whole(folder)
    path = folder / TENSOR_CACHE
    cache = validated(TensorCache, read_json(path), path)
    seen: set[str] = set()
    for shard in cache.records:
        file = _shard_path(folder, shard)
        size = check_file(file)
        if size != shard.nbytes:
            raise GeckoError(
                f"{file}: {size:,} bytes, expected {shard.nbytes:,}: the file is damaged or incomplete",
                "convert the weights again",
            )
        end = 0
        for record in sorted(shard.records, key=lambda r: r.byteOffset):
            if record.name in seen:
                raise GeckoError(f"{path}: the tensor {record.name} is there twice")
            seen.add(record.name)
            if record.format not in ("raw", "f32-to-bf16") or record.dtype not in NUMPY_DTYPES:
                raise GeckoError(
                    f"{path}: {record.name} is {record.dtype} in format {record.format!r}; expected raw or f32-to-bf16"
                    f" and one of {', '.join(NUMPY_DTYPES)}"
                )
            if any(extent < 0 for extent in record.shape):
                raise GeckoError(f"{path}: {record.name} has the shape {record.shape}")
            needed = math.prod(record.shape) * record.stored_dtype.itemsize
            if needed != record.nbytes:
                raise GeckoError(
                    f"{path}: {record.name} of shape {record.shape} and {record.dtype} has"
                    f" {needed:,} bytes, but nbytes is {record.nbytes:,}"
                )
            if record.byteOffset < end:
                raise GeckoError(f"{path}: {record.name} overlaps the tensor before it")
            end = record.byteOffset + record.nbytes
            if end > shard.nbytes:
                raise GeckoError(f"{path}: {record.name} ends at byte {end:,} of a shard of {shard.nbytes:,}")
    return cache


def check_whole(folder: Path) -> None:
    """Raises `GeckoError` when the folder's weights are not complete because their conversion has not ended."""
    conversion = folder / WORKING_FOLDER / CONVERSION
    if conversion.is_file() and not (folder / TENSOR_CACHE).is_file():
        command = read_json(conversion).get("command")
        raise GeckoError(f"{folder}: not whole, its conversion was interrupted; continue it with: {command}")


def _shard_path(folder: Path, shard: ShardRecord) -> Path:
    name = shard.dataPath
    if not is_plain_name(name):
        raise GeckoError(f"{folder / TENSOR_CACHE}: dataPath {name[:80]!r} is not a plain file name")
    file = folder / name
    if not file.exists():
        raise GeckoError(f"{file}: no such file; the model folder is incomplete", "convert it again")
    if file.resolve().parent != folder.resolve():
        raise GeckoError(f"{file}: leads out of the model folder")
    if shard.format != "raw-shard":
        raise GeckoError(f"{file}: format {shard.format!r}, expected 'raw-shard'")
    return file


def checksum_fault(shard: ShardRecord, data: np.ndarray, name: str, expected: str) -> str | None:
    """What is wrong with a shard's bytes by the checksum `name` in hashlib; None where nothing is."""
    if hashlib.new(name, data.data, usedforsecurity=False).hexdigest() == expected:
        return None
    return f"{shard.dataPath}: the {name} differs from {TENSOR_CACHE}: the file is damaged; convert the weights again"


def check_folder(folder: Path) -> list[str]:
    """Faults that loading does not look for: either checksum differs, or weights are not finite."""
    faults = []
    for shard in read_tensor_cache(folder).records:
        data = np.fromfile(folder / shard.dataPath, np.uint8)
        faults += [fault for sums in shard.checksums() if (fault := checksum_fault(shard, data, *sums))]
        for record in shard.records:
            values = data[record.byteOffset : record.byteOffset + record.nbytes].view(record.stored_dtype)
            if record.dtype.startswith(("float", "bfloat")) and not np.isfinite(values.astype(np.float32)).all():
                faults.append(f"{record.name}: not all values are finite")
    return faults
