"""Gecko on this CPU beside PyTorch, in one run: `python benchmarks/cpu.py gecko-120m`.

Random weights of a preset, the same for all. Decode is measured in the middle of a chunk past the second,
prefill from an empty state; ours and the peer's runs take turns. Writes cpu-<preset>-<quantization>.md and
.json beside this file, or to --output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pytorch_step import Step

from gecko_mlc.api import load_model
from gecko_mlc.checkpoint import open_checkpoint
from gecko_mlc.config import preset
from gecko_mlc.convert import convert_weights
from gecko_mlc.gen_config import generate_config
from gecko_mlc.quantization import quantization
from gecko_mlc.random_checkpoint import write_random_checkpoint
from gecko_mlc.reference import Gecko
from gecko_mlc.runtime import bench, machine


def seconds(run: Callable[[], object]) -> float:
    """What `run` takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--quantization", default="q0f32")
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    a = parser.parse_args()
    config, scheme = preset(a.preset), quantization(a.quantization)
    torch.set_num_threads(machine.usable_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_random_checkpoint(config, folder / "checkpoint")
        checkpoint = open_checkpoint(folder / "checkpoint")
        convert_weights(config, checkpoint, scheme, folder / "model")
        generate_config(folder / "checkpoint", scheme, folder / "model")
        model = load_model(folder / "model", say=print)
        peer = Gecko(config)
        peer.load_state_dict({n: torch.from_numpy(checkpoint.read(n)) for n in checkpoint.shapes})
    engine = model.engine
    depth = 2 * config.chunk_size + config.chunk_size // 2
    stream = np.random.default_rng(0).integers(0, config.vocab_size, max(depth, a.prompt_tokens)).tolist()
    tokens = torch.tensor([stream[: a.prompt_tokens]])

    def decode() -> None:
        for _ in range(a.decode_tokens):
            engine.decode([0])

    def prefill() -> None:
        engine.reset(0)
        engine.extend(0, stream[: a.prompt_tokens])

    ceilings = bench.measure_ceilings()
    times: dict[str, list[float]] = {}
    logits = None
    for _ in range(a.repetitions + 1):
        engine.reset(0)
        engine.extend(0, stream[:depth])
        engine.set_token(0, 1)
        times.setdefault("decode", []).append(seconds(decode))
        times.setdefault("prefill", []).append(seconds(prefill))
        step = Step(peer, depth)
        times.setdefault("PyTorch decode", []).append(
            seconds(lambda step=step: [step(1) for _ in range(a.decode_tokens)])
        )
        with torch.no_grad():
            times.setdefault("PyTorch prefill", []).append(seconds(lambda: peer(tokens)))
    with torch.no_grad():
        logits = peer(tokens)[0][0, -1].numpy()
    difference = float(np.abs(engine.logits(0) - logits).max() / np.abs(logits).max())
    ceilings = bench.best_of(ceilings, bench.measure_ceilings())
    moved = sum(bench.decode_bytes(engine.metadata, depth + i) for i in range(a.decode_tokens))
    flop = bench.prefill_flop(engine.metadata, 0, a.prompt_tokens)

    # The first run of each warms up.
    mean = {name: statistics.fmean(values[1:]) for name, values in times.items()}
    lines = [
        f"# {a.preset} {a.quantization} on {machine.cpu_name()}, {machine.usable_cores()} cores",
        "",
        f"Measured in the same run: memory reads {ceilings.read_gb_per_second:.1f} GB/s, an fp32 product of"
        f" 1024³ {ceilings.matmul_gflop_per_second:.0f} GFLOP/s. {a.repetitions} repetitions, mean."
        f" Last logits differ from PyTorch's by {difference:.1e} of the largest.",
        "",
        "| | tokens/s | ± | GB/s | GFLOP/s | % of machine |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    results = {}
    for name in ("decode", "PyTorch decode", "prefill", "PyTorch prefill"):
        count = a.decode_tokens if "decode" in name else a.prompt_tokens
        speeds = [count / t for t in times[name][1:]]
        if "decode" in name:
            rate, limit = moved / mean[name] / 1e9, ceilings.read_gb_per_second
            cells = f"{rate:.1f} | "
        else:
            rate, limit = flop / mean[name] / 1e9, ceilings.matmul_gflop_per_second
            cells = f" | {rate:.0f}"
        results[name] = {
            "tokens": count,
            "tokens_per_second": statistics.fmean(speeds),
            "deviation": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
            "percent_of_ceiling": 100 * rate / limit,
        }
        what = f"{name} {count} tokens" + (f" at {depth}" if "decode" in name else "")
        lines.append(
            f"| {what} | {statistics.fmean(speeds):.1f} | {results[name]['deviation']:.1f} | {cells}"
            f" | {100 * rate / limit:.0f} |"
        )
    ratios = {test: mean[f"PyTorch {test}"] / mean[test] for test in ("decode", "prefill")}
    lines += ["", f"Ours over PyTorch's: decode {ratios['decode']:.2f}, prefill {ratios['prefill']:.2f}.", ""]
    text = "\n".join(lines)
    print(text)
    name = f"cpu-{a.preset}-{a.quantization}"
    (a.output / f"{name}.md").write_text(text)
    report = {
        "schema_version": 1,
        "cpu": machine.cpu_name(),
        "cores": machine.usable_cores(),
        "ceilings": ceilings.model_dump(),
        "relative_difference": difference,
        "results": results,
        "ratios": ratios,
    }
    (a.output / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
