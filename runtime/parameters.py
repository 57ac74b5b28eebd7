"""Reading a model folder's weights: MLC's `tensor-cache.json` and its shards.

Everything is checked here before a byte of a shard is used: the files may come from anywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gecko_mlc.runtime import tvm_runtime
from gecko_mlc.runtime.errors import GeckoError
from gecko_mlc.runtime.files import read_json
from gecko_mlc.runtime.memory import Memory
from pydantic import BaseModel, Field, ValidationError

from gecko_mlc.abi import Parameter

TENSOR_CACHE = "tensor-cache.json"
# Where a conversion keeps what it has, and in it the file that tells how to go on.
WORKING_FOLDER = ".conversion"
CONVERSION = "conversion.json"
# Shards that are read at a time: a disk is faster so, and the device's copies overlap.
READERS = 16

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
    shape: tuple[int, ...]
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
    try:
        cache = TensorCache.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise GeckoError(f"{path}: {where}: {fault['msg']}") from None
    seen: set[str] = set()
    for shard in cache.records:
        file = _shard_path(folder, shard)
        size = file.stat().st_size
        if size != shard.nbytes:
            raise GeckoError(
                f"{file}: {size:,} bytes, expected {shard.nbytes:,}: the file is damaged or incomplete;"
                " convert the weights again"
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
    if "\0" in name or len(name) > 255 or name != Path(name).name or name in ("", ".", ".."):
        raise GeckoError(f"{folder / TENSOR_CACHE}: dataPath {name[:80]!r} is not a plain file name")
    file = folder / name
    if not file.is_file():
        raise GeckoError(f"{file}: no such file; the model folder is incomplete, convert it again")
    if file.resolve().parent != folder.resolve():
        raise GeckoError(f"{file}: leads out of the model folder")
    if shard.format != "raw-shard":
        raise GeckoError(f"{file}: format {shard.format!r}, expected 'raw-shard'")
    return file


class ParameterReader:
    """The tensors of `expected` in a model folder, which threads begin to read at once, until the block ends.

    Tensors of the folder that are not expected are not read. Raises `GeckoError` when one is missing or has another
    shape or dtype.
    """

    def __init__(self, folder: Path, expected: Sequence[Parameter]) -> None:
        cache = read_tensor_cache(folder)
        found = {record.name: record for shard in cache.records for record in shard.records}
        self._owners = {stored.name: parameter for parameter in expected for stored in parameter.stored()}
        for spec in (stored for parameter in expected for stored in parameter.stored()):
            record = found.get(spec.name)
            if record is None:
                raise GeckoError(f"{folder}: the tensor {spec.name} {list(spec.shape)} is missing")
            if record.shape != spec.shape or record.dtype != spec.dtype:
                raise GeckoError(
                    f"{folder}: {spec.name} is {list(record.shape)} {record.dtype}, the library expects"
                    f" {list(spec.shape)} {spec.dtype}; was it compiled for another model or quantization?"
                )
        self._folder, self._expected = folder, expected
        self._total = sum(found[name].nbytes for name in self._owners)
        self._shards = [s for s in cache.records if any(record.name in self._owners for record in s.records)]
        self._pool = ThreadPoolExecutor(READERS)
        self._reads = deque(self._begin(shard, np.empty(0, np.uint8)) for shard in self._shards[:READERS])

    def __enter__(self) -> ParameterReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def load(self, device: Any, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Any]:
        """The tensors, in the order of `expected`, on `device`; those with a layout made of their codes and scales.
        `progress` is told bytes done and bytes in all.

        Raises `GeckoError` when a shard's sha256, or md5 where there is none, is another.
        """
        memory = Memory(device, self._expected)
        done, tensors = 0, {}
        parts: dict[str, np.ndarray] = {}  # Of parameters whose other part has not come yet.
        for shard, data in zip(self._shards, self._contents(), strict=True):
            for record in shard.records:
                if record.name not in self._owners:
                    continue
                spec = self._owners[record.name]
                raw = data[record.byteOffset : record.byteOffset + record.nbytes]
                value = raw.view(record.stored_dtype).astype(NUMPY_DTYPES[record.dtype], copy=False)
                value = value.reshape(record.shape)
                done += record.nbytes
                progress(done, self._total)
                if spec.layout is not None:
                    parts[record.name] = value.copy()
                    names = [stored.name for stored in spec.stored()]
                    if not all(name in parts for name in names):
                        continue
                    q_weight, q_scale = (parts.pop(name) for name in names)
                    value = spec.layout.pack(q_weight, q_scale, spec.inputs)
                tensors[spec.name] = memory.empty(spec.shape, spec.dtype)
                copy_into(tensors[spec.name], value)
        return [tensors[spec.name] for spec in self._expected]

    def _contents(self) -> Iterator[np.ndarray]:
        """The bytes of each shard, until the next is asked for; the next ones are read and checked meanwhile."""
        for i in range(len(self._shards)):
            buffer, size = self._reads.popleft().result()
            yield buffer[:size]
            if i + READERS < len(self._shards):
                self._reads.append(self._begin(self._shards[i + READERS], buffer))

    def _begin(self, shard: ShardRecord, buffer: np.ndarray) -> Future[tuple[np.ndarray, int]]:
        return self._pool.submit(_read, self._folder, shard, buffer)


def _read(folder: Path, shard: ShardRecord, buffer: np.ndarray) -> tuple[np.ndarray, int]:
    """The shard's bytes at the beginning of `buffer`, or of a larger one, and how many. New memory would be slower."""
    with (folder / shard.dataPath).open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        if len(buffer) < size:
            buffer = np.empty(size, np.uint8)
        done, memory = 0, buffer.data
        while done < size and (count := opened.readinto(memory[done:size])):
            done += count
    # One checksum is enough; md5 beside sha256 would take longer than all the rest of loading.
    if fault := _checksum_fault(shard, buffer[:done], *shard.checksums()[0]):
        raise GeckoError(f"{folder}: {fault}")
    return buffer, done


def _checksum_fault(shard: ShardRecord, data: np.ndarray, name: str, expected: str) -> str | None:
    if hashlib.new(name, data.data, usedforsecurity=False).hexdigest() == expected:
        return None
    return f"{shard.dataPath}: the {name} differs from {TENSOR_CACHE}: the file is damaged; convert the weights again"


def copy_into(tensor: Any, array: np.ndarray) -> None:
    """Copy `array` into a device tensor of the same shape and dtype."""
    # `tensor.copyfrom` copies bf16 within the host first, at a tenth of the speed.
    copy = tvm_runtime.load().get_global_func("runtime.TVMTensorCopyFromBytes")
    array = np.ascontiguousarray(array)
    copy(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)


def check_folder(folder: Path) -> list[str]:
    """Faults that loading does not look for: either checksum differs, or weights are not finite."""
    faults = []
    for shard in read_tensor_cache(folder).records:
        data = np.fromfile(folder / shard.dataPath, np.uint8)
        faults += [fault for sums in shard.checksums() if (fault := _checksum_fault(shard, data, *sums))]
        for record in shard.records:
            values = data[record.byteOffset : record.byteOffset + record.nbytes].view(record.stored_dtype)
            if record.dtype.startswith(("float", "bfloat")) and not np.isfinite(values.astype(np.float32)).all():
                faults.append(f"{record.name}: not all values are finite")
    return faults
