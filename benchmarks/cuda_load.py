"""From a model folder on a local disk to the first token, in a process of its own.

`python benchmarks/cuda_load.py LIBRARY FOLDER` prints the seconds of each stage as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(library: Path, config: Any, scheme: Any) -> dict[str, Any]:
    """Write a folder of random weights, drop it from the system's cache, and load it; beside a plain read of its
    files and a copy to the GPU, either of which can be the bound."""
    from cuda_parity import random_parameters, with_derived

    parameters = with_derived(config, random_parameters(config, scheme.model_dtype))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = _write(folder, parameters)
        bounds = {"copy_gb_per_second": _copy_rate(parameters["embed.weight"])}
        parameters.clear()
        _forget(folder)
        bounds["read_gb_per_second"] = _read_rate(folder)
        _forget(folder)
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, library, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        seconds = {"total": time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1])}
        return {"gb": size / 1e9, "disk": _file_system(folder), **bounds, "seconds": seconds}


def _write(folder: Path, parameters: dict[str, Any]) -> int:
    """The model folder's weights; bytes. bf16 has no NumPy type in PyTorch: it goes as integers."""
    import ml_dtypes
    import torch
    from gecko_mlc.runtime.parameters import TENSOR_CACHE

    from gecko_mlc.convert import ShardWriter

    writer = ShardWriter(folder)
    for name, value in parameters.items():
        host = value.cpu()
        bits = host.dtype is torch.bfloat16
        writer.add(name, host.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bits else host.numpy())
    (folder / TENSOR_CACHE).write_text(json.dumps(writer.finish(sum(p.numel() for p in parameters.values()))))
    return writer.total_bytes


def _copy_rate(tensor: Any) -> float:
    """Of ordinary memory to the GPU, GB/s."""
    import torch

    host = tensor.cpu()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    tensor.copy_(host)
    torch.cuda.synchronize()
    return host.numel() * host.element_size() / (time.perf_counter() - begun) / 1e9


def _forget(folder: Path) -> None:
    """Drop the files from the system's cache."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_rate(folder: Path) -> float:
    """Of a quarter of the shards, GB/s."""
    buffer, done, begun = bytearray(2**24), 0, time.perf_counter()
    for file in sorted(folder.glob("*.bin"))[::4]:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                done += count
    return done / (time.perf_counter() - begun) / 1e9


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((m for m in mounts if str(folder).startswith(m[0])), key=lambda m: len(m[0]))[1]


def first_token(library: Path, folder: Path) -> dict[str, float]:
    """Seconds of the stages, each from the end of the one before."""
    times = [time.perf_counter()]
    from gecko_mlc.runtime.engine import Engine
    from gecko_mlc.runtime.library import Library
    from gecko_mlc.runtime.parameters import load_parameters

    times.append(time.perf_counter())
    opened = Library(library)
    times.append(time.perf_counter())
    parameters = load_parameters(folder, opened.metadata.parameters, opened.device)
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
