"""The cost of a token at any position: `python benchmarks/constant_cost.py`.

Decodes whole chunks of the demo near token 1,000 and near token 100,000, in turn, and compares their speeds,
and the process's memory before and after the long stream. Writes constant-cost.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from gecko_mlc.runtime import bench, machine

from gecko_mlc.api import load_model

NEAR, FAR, CHUNKS, REPETITIONS = 1_000, 100_000, 4, 7


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    output = parser.parse_args().output
    engine = load_model("gecko-demo", say=print).engine
    size = engine.chunk_size
    stream = np.random.default_rng(0).integers(0, engine.vocab_size, FAR).tolist()
    # Chunks begin at whole multiples of their size.
    near, far = NEAR // size * size, FAR // size * size
    seconds: dict[int, list[float]] = {near: [], far: []}
    memory: dict[int, int] = {}
    for repetition in range(REPETITIONS + 1):
        for position in (near, far):
            engine.reset(0)
            engine.extend(0, stream[:position])
            spent = bench.time_test(engine, "decode", range(CHUNKS * size))
            resident = machine.resident_bytes()
            if repetition:
                seconds[position].append(spent)
            elif resident is not None:
                memory[position] = resident
    speeds = {position: CHUNKS * size / statistics.median(spent) for position, spent in seconds.items()}
    change = 100 * (speeds[far] / speeds[near] - 1)
    growth = 100 * (memory[far] / memory[near] - 1) if memory else float("nan")
    text = (
        f"# The cost of a token, gecko-demo on {machine.cpu_name()}, {machine.usable_cores()} cores\n\n"
        f"{CHUNKS} whole chunks of {size} tokens, median of {REPETITIONS} repetitions in turn.\n\n"
        "| from position | tokens/s | process memory |\n|---:|---:|---:|\n"
        + "".join(f"| {p:,} | {speeds[p]:.0f} | {memory.get(p, 0) / 2**20:.1f} MiB |\n" for p in (near, far))
        + f"\nSpeed {change:+.1f} %, memory {growth:+.2f} %.\n"
    )
    print(text)
    (output / "constant-cost.md").write_text(text)


if __name__ == "__main__":
    main()
