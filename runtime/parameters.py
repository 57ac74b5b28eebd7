"""Reading a model folder's weights: MLC's `tensor-cache.json` and its shards.

Everything is checked here before a byte of a shard is used: the files may come from anywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gecko_mlc.formats.errors import DamagedError, GeckoError
from gecko_mlc.formats.library import Parameter
from gecko_mlc.formats.weights import NUMPY_DTYPES, ShardRecord, checksum_fault, read_tensor_cache
from gecko_mlc.runtime.players.player import Player, Tensor

# Shards that are read at a time: a disk is faster so, and the device's copies overlap.
READERS = 16


class ParameterReader:
    """The tensors of `expected` in a model folder, which threads begin to read at once, until the block ends.

    Tensors of the folder that are not expected are not read. As many shards are read at a time as `room` bytes hold,
    where that is known. Raises `GeckoError` when one is missing or has another shape or dtype.
    """

    def __init__(self, folder: Path, expected: Sequence[Parameter], room: int | None = None) -> None:
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
        largest = max((shard.nbytes for shard in self._shards), default=0)
        self._readers = READERS if room is None else max(1, min(READERS, room // max(largest, 1)))
        self._pool = ThreadPoolExecutor(self._readers)
        self._reads = deque(self._begin(shard, np.empty(0, np.uint8)) for shard in self._shards[: self._readers])

    def __enter__(self) -> ParameterReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def load(self, player: Player, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Tensor]:
        """The tensors, in the order of `expected`, in the memory of `player`; those with a layout made of their codes
        and scales. `progress` is told bytes done and bytes in all.

        Raises `GeckoError` when a shard's sha256, or md5 where there is none, is another.
        """
        tensors = dict(zip((p.name for p in self._expected), player.allocate(self._expected), strict=True))
        done = 0
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
                player.upload(tensors[spec.name], value)
        return list(tensors.values())

    def _contents(self) -> Iterator[np.ndarray]:
        """The bytes of each shard, until the next is asked for; the next ones are read and checked meanwhile."""
        for i in range(len(self._shards)):
            buffer, size = self._reads.popleft().result()
            yield buffer[:size]
            if i + self._readers < len(self._shards):
                self._reads.append(self._begin(self._shards[i + self._readers], buffer))

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
    if fault := checksum_fault(shard, buffer[:done], *shard.checksums()[0]):
        raise DamagedError(f"{folder}: {fault}")
    return buffer, done
