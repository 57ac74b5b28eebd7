"""Gecko on an NVIDIA GPU, in one run with the GPU's limits and the peers: `python benchmarks/cuda.py gecko-7b`.

Parity first: every kernel against its oracle, the golden vectors, the preset against fp32 arithmetic on the same
rounded weights, two conversations in turn, a library loaded again. Then speeds: decode over whole chunks, the time
between tokens across chunk boundaries, prefill, each kernel, and a `torch.compile`d Gecko. Weights are made on the
GPU from a seed. Writes cuda-<preset>.md and .json beside this file, or to --output.

Where the GPU's machine has no compiler: `--prepare FOLDER` on one that has, then `--measure FOLDER` there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gecko_mlc.runtime import bench

from gecko_mlc.config import preset
from gecko_mlc.quantization import quantization

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SCHEMES = ("q0bf16", "q0f16")
# Positions of the chunks that decode is averaged over, in chunks.
NEAR, FAR = 4, 512


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--arch", default="auto", help="what to compile for, like sm_90")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="only compile, into this folder")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure what --prepare made")
    parser.add_argument("--parts", default="kernels,golden,parity,conversations,decode,prefill,profile,peers")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    a = parser.parse_args()
    schemes = a.schemes.split(",")
    if a.prepare:
        prepare(a.preset, schemes, a.arch, a.prepare)
    elif a.measure:
        measure(a.preset, schemes, a.measure, a.parts.split(","), a.output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            prepare(a.preset, schemes, a.arch, Path(folder))
            measure(a.preset, schemes, Path(folder), a.parts.split(","), a.output)


def prepare(name: str, schemes: Sequence[str], arch: str, folder: Path) -> None:
    """Compile the preset, the golden configs and the kernels' cases into `folder`."""
    from cuda_parity import prepare_golden, prepare_kernels

    folder.mkdir(parents=True, exist_ok=True)
    for scheme in schemes:
        # In processes of their own: a compiler's memory goes back with it.
        command = [sys.executable, "-m", "gecko_mlc", "compile", name, "--quantization", scheme, "--device", "cuda"]
        subprocess.run([*command, "--arch", arch, "-o", str(folder / f"{name}-{scheme}.so")], check=True)
    prepare_golden(GOLDEN, arch, folder)
    prepare_kernels(arch, folder)


def measure(name: str, schemes: Sequence[str], folder: Path, parts: Sequence[str], output: Path) -> None:
    """Run the `parts` on this machine's GPU and write what they gave."""
    import cuda_parity
    import peers
    import torch

    config = preset(name)
    result: dict[str, Any] = {"preset": name, "gpu": torch.cuda.get_device_name(), "ceilings": ceilings()}
    print(result["gpu"], result["ceilings"], flush=True)

    def part(label: str, run: Callable[[], Any]) -> None:
        if label.split(" ")[0] not in parts:
            return
        begun = time.perf_counter()
        result[label] = run()
        print(
            f"{label} ({time.perf_counter() - begun:.0f} s): {json.dumps(result[label], default=str)[:1500]}",
            flush=True,
        )
        write(result, output / f"cuda-{name}")

    part("kernels", lambda: cuda_parity.kernels(folder))
    part("golden", lambda: cuda_parity.golden(folder))
    part("conversations", lambda: cuda_parity.conversations(folder))
    for scheme in schemes:
        engine = cuda_parity.random_engine(folder / f"{name}-{scheme}.so", config)
        part(f"parity {scheme}", lambda: cuda_parity.logits(engine, config, quantization(scheme)))  # noqa: B023
        part(f"prefill {scheme}", lambda: prefill(engine, result["ceilings"]))  # noqa: B023
        part(f"decode {scheme}", lambda: decode(engine, result["ceilings"]))  # noqa: B023
        part(f"profile {scheme}", lambda: profile(engine))  # noqa: B023
        del engine
        torch.cuda.empty_cache()
    part("peers", lambda: peers.measure(config, NEAR * config.chunk_size))


def ceilings() -> dict[str, float]:
    """Bytes read and written by a copy, GB/s; bf16 product of 8192³ and fp32 one through cuBLAS, TFLOP/s."""
    import torch

    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    destination = torch.empty_like(source)
    copy = milliseconds(lambda: destination.copy_(source))
    del source, destination
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = milliseconds(lambda: a @ b)
    return {"copy_gb_per_second": 2 * 2**32 / copy / 1e6, "bf16_tflop_per_second": 2 * 8192**3 / product / 1e9}


def milliseconds(run: Callable[[], Any], repetitions: int = 10) -> float:
    """The median of a GPU's work."""
    import torch

    times = []
    for repetition in range(repetitions + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if repetition >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def prefill(engine: Any, limits: dict[str, float]) -> list[dict[str, float]]:
    """Prompts of 2048 and 32,768 tokens from an empty state."""
    rows = []
    for count, repetitions in ((2048, 5), (32_768, 2)):
        tokens = np.random.default_rng(0).integers(0, engine.vocab_size, count).tolist()
        seconds = []
        for _ in range(repetitions + 1):
            engine.reset(0)
            engine.synchronize()
            begun = time.perf_counter()
            engine.extend(0, tokens)
            engine.synchronize()
            seconds.append(time.perf_counter() - begun)
        spent = statistics.median(seconds[1:])
        rate = bench.prefill_flop(engine.metadata, 0, count) / spent / 1e12
        rows.append(
            {
                "tokens": count,
                "tokens_per_second": count / spent,
                "tflop_per_second": rate,
                "percent_of_cublas": 100 * rate / limits["bf16_tflop_per_second"],
            }
        )
    return rows


def decode(engine: Any, limits: dict[str, float]) -> dict[str, Any]:
    """Whole chunks past the third and past a million tokens, and the time between tokens across boundaries."""
    import torch

    size = engine.chunk_size
    tokens = np.random.default_rng(1).integers(0, engine.vocab_size, NEAR * size).tolist()
    engine.reset(0)
    engine.extend(0, tokens)
    rows = []
    free = []
    for chunk in (NEAR, FAR):
        move_to(engine, chunk)
        engine.burst([0], 8)
        move_to(engine, chunk)
        engine.synchronize()
        begun = time.perf_counter()
        engine.burst([0], size)
        engine.synchronize()
        spent = time.perf_counter() - begun
        work = sum(bench.decode_bytes(engine.metadata, chunk * size + i) for i in range(size))
        free.append(torch.cuda.mem_get_info()[0])
        rows.append(
            {
                "position": chunk * size,
                "tokens_per_second": size / spent,
                "gb_per_second": work / spent / 1e9,
                "percent_of_copy": work / spent / 1e7 / limits["copy_gb_per_second"],
            }
        )
    move_to(engine, NEAR)
    between = []
    engine.synchronize()
    last = time.perf_counter()
    for _ in range(3 * size + 8):
        engine.burst([0], 1)
        engine.token(0)
        now = time.perf_counter()
        between.append(now - last)
        last = now
    between.sort()
    return {
        "chunks": rows,
        "far_over_near": rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"],
        "bytes_grown": free[0] - free[1],
        "milliseconds_between_tokens": {
            "median": 1e3 * statistics.median(between),
            "p99": 1e3 * between[math.ceil(0.99 * len(between)) - 1],
            "largest": 1e3 * between[-1],
        },
    }


def move_to(engine: Any, chunk: int) -> None:
    """The state as it is, at the start of another chunk: what a token costs depends on nothing else."""
    engine.write("position", 0, np.array([chunk, 0], np.int32))
    engine.positions[0] = chunk * engine.chunk_size


def profile(engine: Any) -> list[dict[str, Any]]:
    """Kernels of a decode step in the middle of a chunk, and of a prefill of 2048: launches, microseconds."""
    import torch
    from torch.profiler import ProfilerActivity

    move_to(engine, NEAR)
    tokens = np.random.default_rng(2).integers(0, engine.vocab_size, min(2048, engine.chunk_size)).tolist()
    engine.extend(0, tokens[: engine.chunk_size // 2])
    rows = []
    for function, run in (("decode", lambda: engine.decode([0])), ("prefill", lambda: engine.extend(0, tokens))):
        if function == "prefill":
            engine.reset(0)
        engine.synchronize()
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as recorded:
            run()
            engine.synchronize()
        spent: dict[str, list[float]] = defaultdict(list)
        for event in recorded.events():
            spent[event.name].append(event.device_time)
        for kernel, times in sorted(spent.items(), key=lambda item: -sum(item[1])):
            rows.append(
                {
                    "function": function,
                    "kernel": kernel,
                    "launches": len(times),
                    "microseconds": statistics.median(times),
                    "total": sum(times),
                }
            )
    return rows


def write(result: dict[str, Any], path: Path) -> None:
    """The result as JSON, and as a text of tables."""
    path.with_suffix(".json").write_text(json.dumps(result, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
