"""Writing a model folder's weights: several shards at once, each by itself, so that what was interrupted continues.

Shards are written in a working folder inside the model folder, each with a record beside it once it is whole. The last
step moves them into their place; meanwhile the folder has no index, which says that it is not whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, read_json
from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.formats.weights import (
    CONVERSION,
    NUMPY_DTYPES,
    TENSOR_CACHE,
    WORKING_FOLDER,
    ShardRecord,
    TensorCache,
    TensorRecord,
)
from gecko_mlc.runtime.devices.host import usable_cores

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
SHARD_BYTES = 32 * 2**20
# At a time; each holds in memory a matrix and what is made of it.
MOST_WRITERS = 8
# Bytes that are hashed and written while they are in a core's cache.
_PIECE = 2**18
_LOCK = "lock"


class Part(NamedTuple):
    """Tensors that are made together, when they are written."""

    specs: tuple[TensorSpec, ...]
    make: Callable[[], Sequence[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return sum(math.prod(spec.shape) * int(NUMPY_DTYPES[spec.dtype].itemsize) for spec in self.specs)


class _Shard(NamedTuple):
    name: str
    parts: list[Part]


def write_weights(
    output: Path, parts: Sequence[Part], parameters: int, identity: str, command: str, progress: Progress, say: Say
) -> None:
    """Write `tensor-cache.json` and its shards into the folder `output`, the same bytes for the same parts.

    What an interrupted conversion with the same `identity` left is not made again. Old weights stay until the new ones
    are complete. `parameters` is the model's number; `command` continues a conversion that is interrupted now;
    `progress` is told bytes done and bytes in all. Raises `GeckoError` when another conversion writes into the folder,
    and for a disk that is too small; after an error of the parts' nothing is left.
    """
    total = sum(part.nbytes for part in parts)
    work = output / WORKING_FOLDER
    if not (work / TENSOR_CACHE).is_file():  # If it is, all shards are, too, some of them in their place.
        check_space(output, total - sum(file.stat().st_size for file in work.glob("*")))
    with _locked(work):
        shards = _pack(parts)
        records = _resume(work, shards, identity, command, say)

        def written(*new: ShardRecord) -> None:
            records.update((record.dataPath, record) for record in new)
            progress(sum(record.nbytes for record in records.values()), total)

        written()
        try:
            _write_shards(work, [shard for shard in shards if shard.name not in records], written)
        except GeckoError:
            shutil.rmtree(work)
            raise
        metadata = {
            "ParamSize": sum(len(record.records) for record in records.values()),
            "ParamBytes": float(total),
            "BitsPerParam": 8.0 * total / parameters,
        }
        _install(output, TensorCache(metadata=metadata, records=[records[shard.name] for shard in shards]))


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk that `folder` is, or will be, on cannot hold."""
    disk = folder
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise GeckoError(f"{folder}: needs about {needed:,} bytes, the disk has {free:,} left")


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Keep other conversions out of the folder. The system unlocks when the process ends, however it does."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(file.fileno()).st_nlink > 0  # If not, the one that removed it has just ended.
        except BlockingIOError:
            free = False
        if not free:
            raise GeckoError(f"{work.parent}: another conversion is writing into it; wait, or take another folder")
        yield


def _pack(parts: Sequence[Part]) -> list[_Shard]:
    """Parts in their order, in shards of 32 MiB; a larger one in a shard of its own."""
    packed: list[list[Part]] = []
    filled = SHARD_BYTES
    for part in parts:
        if filled + part.nbytes > SHARD_BYTES:
            packed.append([])
            filled = 0
        packed[-1].append(part)
        filled += part.nbytes
    return [_Shard(f"params_shard_{i}.bin", shard) for i, shard in enumerate(packed)]


def _resume(work: Path, shards: Sequence[_Shard], identity: str, command: str, say: Say) -> dict[str, ShardRecord]:
    """Records of the shards that are there; what another conversion left in `work` goes."""
    try:
        before = read_json(work / CONVERSION).get("identity")
    except GeckoError:
        before = None
    records = {}
    if before == identity:
        installing = (work / TENSOR_CACHE).is_file()
        for shard in shards:
            try:
                record = ShardRecord.model_validate_json(_record_path(work, shard.name).read_text())
                if installing or (work / shard.name).stat().st_size == record.nbytes:
                    records[shard.name] = record
            except (OSError, ValueError):
                continue
        if records:
            say(f"continuing an interrupted conversion: {len(records)} of {len(shards)} shards are there")
    else:
        if before is not None:
            say("an interrupted conversion was of another checkpoint, or with other options: beginning again")
        for file in work.iterdir():
            if file.name != _LOCK:
                file.unlink()
        with atomic_write(work / CONVERSION) as stream:
            json.dump({"command": command, "identity": identity}, stream)
    return records


def _write_shards(work: Path, shards: Sequence[_Shard], written: Callable[[ShardRecord], None]) -> None:
    """Write shards, and tell of each. One thread more than cores, as they wait for the disk."""
    with ThreadPoolExecutor(min(usable_cores() + 1, MOST_WRITERS)) as pool:
        try:
            for write in as_completed([pool.submit(_write_shard, work, shard) for shard in shards]):
                written(write.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write_shard(work: Path, shard: _Shard) -> ShardRecord:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    tensors: list[TensorRecord] = []
    offset = 0
    with (work / shard.name).open("wb") as file:
        for part in shard.parts:
            for spec, array in zip(part.specs, part.make(), strict=True):
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                for start in range(0, len(data), _PIECE):
                    piece = data[start : start + _PIECE]
                    file.write(piece)
                    md5.update(piece)
                    sha256.update(piece)
                tensors.append(
                    TensorRecord(
                        name=spec.name, shape=array.shape, dtype=str(array.dtype), nbytes=len(data), byteOffset=offset
                    )
                )
                offset += len(data)
        # The record must not outlive the data when the machine goes down.
        file.flush()
        os.fsync(file.fileno())
    record = ShardRecord(
        dataPath=shard.name,
        format="raw-shard",
        nbytes=offset,
        md5sum=md5.hexdigest(),
        sha256=sha256.hexdigest(),
        records=tensors,
    )
    with atomic_write(_record_path(work, shard.name)) as stream:
        stream.write(record.model_dump_json())
    return record


def _record_path(work: Path, shard: str) -> Path:
    return work / f"{shard}.json"


def _install(output: Path, index: TensorCache) -> None:
    """Put the shards in the place of the old ones. An interrupted one goes on with those that are still in `work`."""
    work = output / WORKING_FOLDER
    with atomic_write(work / TENSOR_CACHE) as file:
        file.write(index.model_dump_json(indent=2))
    (output / TENSOR_CACHE).unlink(missing_ok=True)
    names = {shard.dataPath for shard in index.records}
    for name in names:
        if (work / name).exists():
            os.replace(work / name, output / name)
    for old in output.glob("params_shard_*.bin"):
        if old.name not in names:
            old.unlink()
    os.replace(work / TENSOR_CACHE, output / TENSOR_CACHE)
    shutil.rmtree(work)
