"""From a model folder on a local disk to the first token, in a process of its own.

`python benchmarks/cuda_load.py LIBRARY FOLDER` prints the seconds of each stage as JSON.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def measure(library: Path, config: Any, scheme: Any) -> dict[str, Any]:
    """Write a folder of random weights, drop it from the system's cache, and load it, then again from the cache;
    beside plain reads of its files and a copy to the GPU, either of which can be the bound."""
    from support.gpu.models import random_parameters

    from gecko_mlc.runtime.parameters import READERS

    parameters = random_parameters(config, scheme.model_dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = _write(folder, config, scheme, parameters)
        copy = _copy_rate(parameters["embed.weight"])
        parameters.clear()
        shards = sorted(folder.glob("*.bin"))
        _forget(shards)
        # Shards of their own for each: what one has read is in the system's cache.
        reads = {readers: _read_rate(shards[i::4], readers) for i, readers in enumerate((1, READERS))}
        _forget(shards)
        return {
            "gb": size / 1e9,
            "disk": _file_system(folder),
            "copy_gb_per_second": copy,
            "read_gb_per_second": reads,
            "percent_cached": _percent_cached(shards),
            "seconds": _seconds(library, folder),
            "seconds_from_cache": _seconds(library, folder),
        }


def _seconds(library: Path, folder: Path) -> dict[str, float]:
    """Of a process that loads and exits, in all and by stages."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, library, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"total": time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1])}


def _write(folder: Path, config: Any, scheme: Any, parameters: dict[str, Any]) -> int:
    """The model folder's weights; bytes. bf16 has no NumPy type in PyTorch: it goes as integers."""
    import ml_dtypes
    import torch

    from gecko_mlc.convert.checkpoint import Checkpoint
    from gecko_mlc.convert.weights import convert_weights

    class OnDevice(Checkpoint):
        def read(self, name: str) -> Any:
            host = parameters[name].cpu()
            if host.dtype is torch.bfloat16:
                return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return host.numpy()

    checkpoint = OnDevice({name: tuple(value.shape) for name, value in parameters.items()})
    convert_weights(config, checkpoint, scheme, folder)
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


def _copy_rate(tensor: Any) -> float:
    """Of ordinary memory to the GPU, GB/s."""
    import torch

    host = tensor.cpu()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    tensor.copy_(host)
    torch.cuda.synchronize()
    return host.numel() * host.element_size() / (time.perf_counter() - begun) / 1e9


def _forget(files: Sequence[Path]) -> None:
    """Drop the files from the system's cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _percent_cached(files: Sequence[Path]) -> float:
    """How much of the files is in the system's cache."""
    pages = cached = 0
    for file in files:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            present = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
            address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapped))
            if ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), present):
                raise OSError(f"{file}: mincore failed")
            pages += len(present)
            cached += sum(page & 1 for page in present)
    return 100 * cached / pages


def _read_rate(files: Sequence[Path], readers: int) -> float:
    """Of files read by threads, GB/s."""

    def read(part: Sequence[Path]) -> int:
        buffer, done = bytearray(2**24), 0
        for file in part:
            with file.open("rb", buffering=0) as opened:
                while count := opened.readinto(buffer):
                    done += count
        return done

    begun = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        done = sum(pool.map(read, [files[i::readers] for i in range(readers)]))
    return done / (time.perf_counter() - begun) / 1e9


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((m for m in mounts if str(folder).startswith(m[0])), key=lambda m: len(m[0]))[1]


def first_token(library: Path, folder: Path) -> dict[str, float]:
    """Seconds of the stages, each from the end of the one before."""
    times = [time.perf_counter()]
    from gecko_mlc.runtime.engine import Engine
    from gecko_mlc.runtime.library import Library, check_library
    from gecko_mlc.runtime.parameters import ParameterReader

    times.append(time.perf_counter())
    with ParameterReader(folder, check_library(library).parameters) as reader:
        opened = Library(library)
        times.append(time.perf_counter())
        parameters = reader.load(opened.player)
    times.append(time.perf_counter())
    engine = Engine(opened, parameters)
    engine.extend(0, range(16))
    engine.sample([0])
    engine.token(0)
    times.append(time.perf_counter())
    stages = ("imports", "library", "weights", "first_token")
    return {stage: after - before for stage, before, after in zip(stages, times, times[1:], strict=False)}


if __name__ == "__main__":
    print(json.dumps(first_token(Path(sys.argv[1]), Path(sys.argv[2]))))
