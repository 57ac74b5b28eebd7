"""Gecko on this CPU beside llama.cpp, in one run: `python benchmarks/cpu_llama_cpp.py gecko-1b`.

Needs PyPI's `llama-cpp-python` and `gguf`. The peer is a Llama of the same layers and width and as many parameters,
its random weights of as many bits, on as many threads. Decode is measured from an empty state and in the middle of a
chunk past the second, prefill from an empty state; ours and the peer's runs take turns. Writes
cpu-llama-cpp-<preset>.md and .json into results/, or --output.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpu_common
import numpy as np
from peers.llama_cpp import Gecko, LlamaCpp, Test, build
from peers.llama_gguf import Llama, llama_like, write_gguf

from gecko_mlc.config import preset
from gecko_mlc.convert.random import write_random_checkpoint
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.measure import bench

# Schemes of as many bits a weight.
PEERS = {"q0f16": "F16", "q8f16_1": "Q8_0", "q4f16_1": "Q4_0"}

Runs = dict[Test, list[bench.Run]]


def take_turns(
    peers: Sequence[Gecko | LlamaCpp],
    tests: Sequence[Test],
    stream: Sequence[int],
    limits: bench.Machine,
    repetitions: int,
) -> tuple[list[Runs], list[float]]:
    """The runs of each peer, the machine's limits measured before every one, and what part of all cores' time each had.

    Threads of both spin while they wait, so a part below one went to other processes, and barriers wait for them.
    """
    runs: list[Runs] = [{test: [] for test in tests} for _ in peers]
    shares = []
    for repetition in range(repetitions + 1):
        print(f"  repetition {repetition} of {repetitions}", flush=True)
        for test in tests:
            for peer, own in zip(peers, runs, strict=True):
                peer.begin(stream[: test.start])
                ceilings = limits.measure()
                begun, used = time.perf_counter(), time.process_time()
                run = bench.Run(peer.seconds(test.kind, stream[test.start : test.start + test.count]), ceilings)
                wall, used = time.perf_counter() - begun, time.process_time() - used
                # The first one warms up.
                if repetition:
                    own[test].append(run)
                    shares.append(used / wall / host.usable_cores())
    return runs, shares


def load_llama_cpp(llama: Llama, scheme: str, path: Path, context: int) -> LlamaCpp:
    """The peer, with random weights as `scheme`."""
    write_gguf(llama, scheme, path)
    return LlamaCpp(llama, scheme, path, context)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--quantization", nargs="+", choices=PEERS, default=["q8f16_1", "q4f16_1"])
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    a = parser.parse_args()
    config = preset(a.preset)
    llama = llama_like(config)
    depth = 2 * config.chunk_size + config.chunk_size // 2
    tests = [
        Test("decode", 0, a.decode_tokens),
        Test("decode", depth, a.decode_tokens),
        Test("prefill", 0, a.prompt_tokens),
    ]
    longest = max(test.start + test.count for test in tests)
    stream = np.random.default_rng(0).integers(0, config.vocab_size, longest).tolist()
    limits = bench.Machine()
    measurements: dict[tuple[str, Test], bench.Measurement] = {}
    ratios: dict[tuple[str, Test], float] = {}
    ceilings: list[bench.Ceilings] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_random_checkpoint(config, folder / "checkpoint", "bfloat16")
        for name in a.quantization:
            scheme = PEERS[name]
            print(f"{name} and {scheme}", flush=True)
            gecko = Gecko(cpu_common.load(config, folder / "checkpoint", name, folder / name).engine)
            peer = load_llama_cpp(llama, scheme, folder / f"{scheme}.gguf", longest)
            (ours, theirs), pair_shares = take_turns([gecko, peer], tests, stream, limits, a.repetitions)
            for test in tests:
                measurements[f"gecko-mlc {name}", test] = gecko.measurement(test, ours[test])
                measurements[f"llama.cpp {scheme}", test] = peer.measurement(test, theirs[test])
                pairs = list(zip(ours[test], theirs[test], strict=True))
                ratios[f"{name} / {scheme}", test] = statistics.median(t.seconds / o.seconds for o, t in pairs)
                ceilings += [run.ceilings for pair in pairs for run in pair]
            shares += pair_shares
            peer.close()
            del gecko
    report = {
        **cpu_common.machine(bench.best(ceilings)),
        "repetitions": a.repetitions,
        "least_share_of_cores": min(shares),
        "gecko": {"preset": a.preset, "parameters": config.num_parameters()},
        "llama": {"shape": str(llama), "parameters": llama.num_parameters()},
        "llama_cpp": build(),
        "measurements": {f"{who}, {test}": m.model_dump() for (who, test), m in measurements.items()},
        "ratios": {f"{pair}, {test}": ratio for (pair, test), ratio in ratios.items()},
    }
    cpu_common.write(a.output, f"cpu-llama-cpp-{a.preset}", markdown(report), report)


def markdown(report: dict[str, Any]) -> str:
    """The report as text and a table."""
    gecko, llama, build = (report[part] for part in ("gecko", "llama", "llama_cpp"))
    lines = [
        f"# {gecko['preset']} beside llama.cpp on {report['cpu']}, {report['cores']} cores",
        "",
        f"{gecko['preset']} has {gecko['parameters']:,} parameters. The peer has {llama['parameters']:,}, a"
        f" {llama['shape']}; llama-cpp-python {build['version']}, {build['system_info']}.",
        "",
        f"{cpu_common.limits(report, report['repetitions'])} Every run had at least"
        f" {100 * report['least_share_of_cores']:.0f} % of the cores' time.",
        "",
        "| | tokens/s | ± | GB/s | GFLOP/s | % of machine |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {title} | {cpu_common.cells(m)} |" for title, m in report["measurements"].items()]
    lines += ["", "| ours over llama.cpp's, median of neighbouring runs | |", "|---|---:|"]
    lines += [f"| {title} | {ratio:.2f} |" for title, ratio in report["ratios"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
