"""Gecko on this CPU beside PyTorch, in one run: `python benchmarks/cpu.py gecko-120m`.

Random weights of a preset, the same for all. Decode is measured in the middle of a chunk past the second,
prefill from an empty state; ours and the peer's runs take turns. Writes cpu-<preset>-<quantization>.md and
.json into results/, or --output.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cpu_common
import numpy as np
import torch
from peers.pytorch_eager import Step

from gecko_mlc.config import preset
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.random import write_random_checkpoint
from gecko_mlc.reference.gecko import Gecko
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.measure import bench


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
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    a = parser.parse_args()
    config = preset(a.preset)
    torch.set_num_threads(host.usable_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_random_checkpoint(config, folder / "checkpoint")
        checkpoint = open_checkpoint(folder / "checkpoint")
        engine = cpu_common.load(config, folder / "checkpoint", a.quantization, folder / "model").engine
        peer = Gecko(config)
        peer.load_state_dict({n: torch.from_numpy(checkpoint.read(n)) for n in checkpoint.tensors})
    depth = 2 * config.chunk_size + config.chunk_size // 2
    stream = np.random.default_rng(0).integers(0, config.vocab_size, max(depth, a.prompt_tokens)).tolist()
    tokens = torch.tensor([stream[: a.prompt_tokens]])

    def prefill() -> float:
        engine.reset(0)
        return bench.time_test(engine, "prefill", [stream[: a.prompt_tokens]])

    def decode() -> float:
        engine.reset(0)
        engine.extend(0, stream[:depth])
        return bench.time_test(engine, "decode", [range(a.decode_tokens)])

    def peer_prefill() -> float:
        with torch.no_grad():
            return seconds(lambda: peer(tokens))

    def peer_decode() -> float:
        step = Step(peer, depth)
        return seconds(lambda: [step(1) for _ in range(a.decode_tokens)])

    tests = {
        ("gecko-mlc", "decode"): decode,
        ("PyTorch", "decode"): peer_decode,
        ("gecko-mlc", "prefill"): prefill,
        ("PyTorch", "prefill"): peer_prefill,
    }
    limits = bench.Machine()
    runs: dict[tuple[str, str], list[bench.Run]] = {key: [] for key in tests}
    for repetition in range(a.repetitions + 1):
        for key, test in tests.items():
            ceilings = limits.measure()
            run = bench.Run(test(), ceilings)
            # The first one warms up.
            if repetition:
                runs[key].append(run)
    prefill()
    with torch.no_grad():
        expected = peer(tokens)[0][0, -1].numpy()
    difference = float(np.abs(engine.logits(0) - expected).max() / np.abs(expected).max())
    ceilings = bench.best([run.ceilings for several in runs.values() for run in several])
    measurements = {
        (who, test): bench.summarize(
            engine.metadata,
            test,
            a.decode_tokens if test == "decode" else a.prompt_tokens,
            depth if test == "decode" else 0,
            several,
        )
        for (who, test), several in runs.items()
    }
    ratios = {
        test: statistics.fmean(
            theirs.seconds / ours.seconds
            for ours, theirs in zip(runs["gecko-mlc", test], runs["PyTorch", test], strict=True)
        )
        for test in ("decode", "prefill")
    }
    report = {
        **cpu_common.machine(ceilings),
        "relative_difference": difference,
        "measurements": {" ".join(key): m.model_dump() for key, m in measurements.items()},
        "ratios": ratios,
    }
    lines = [
        f"# {a.preset} {a.quantization} on {host.cpu_name()}, {host.usable_cores()} cores",
        "",
        f"{cpu_common.limits(report, a.repetitions)} Last logits differ from PyTorch's by {difference:.1e} of the"
        " largest.",
        "",
        "| | tokens | at | tokens/s | ± | GB/s | GFLOP/s | % of machine |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {title} | {m['tokens']} | {m['depth']} | {cpu_common.cells(m)} |"
        for title, m in report["measurements"].items()
    ]
    lines += ["", f"Ours over PyTorch's: decode {ratios['decode']:.2f}, prefill {ratios['prefill']:.2f}.", ""]
    cpu_common.write(a.output, f"cpu-{a.preset}-{a.quantization}", "\n".join(lines), report)


if __name__ == "__main__":
    main()
