"""The cost of a token at any position: `python benchmarks/constant_cost.py`.

Decodes whole chunks of the demo near token 1,000 and near token 100,000, in turn, each in a slot of its own, and
compares their speeds, and the process's memory before and after the long stream. The later position moves on, the
earlier one does not. Writes constant-cost.md into results/.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gecko_mlc.api import load_model
from gecko_mlc.models import model_folder
from gecko_mlc.runtime.devices import host

NEAR, FAR, CHUNKS, REPETITIONS = 1_000, 100_000, 4, 15


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary) / "demo.so"
        command = [sys.executable, "-m", "gecko_mlc", "compile", str(model_folder("gecko-demo")), "-o", str(library)]
        subprocess.run([*command, "--overrides", "max_batch_size=2"], check=True)
        engine = load_model("gecko-demo", library).engine
    size = engine.chunk_size
    stream = np.random.default_rng(0).integers(0, engine.vocab_size, FAR).tolist()
    # Chunks begin at whole multiples of their size. A slot for each position.
    starts = [NEAR // size * size, FAR // size * size]
    memory = []
    for slot, start in enumerate(starts):
        engine.extend(slot, stream[:start])
        memory.append(host.resident_bytes() or 0)
    seconds: dict[int, list[float]] = {start: [] for start in starts}
    for repetition in range(REPETITIONS + 1):
        for slot, start in enumerate(starts):
            if slot == 0:
                engine.reset(0)
                engine.extend(0, stream[:start])
            begun = time.perf_counter()
            for _ in range(CHUNKS * size):
                engine.decode([slot])
            if repetition:
                seconds[start].append(time.perf_counter() - begun)
    near, far = starts
    speeds = {position: CHUNKS * size / statistics.median(spent) for position, spent in seconds.items()}
    change = 100 * (speeds[far] / speeds[near] - 1)
    growth = 100 * (memory[1] / memory[0] - 1)
    text = (
        f"# The cost of a token, gecko-demo on {host.cpu_name()}, {host.usable_cores()} cores\n\n"
        f"{CHUNKS} whole chunks of {size} tokens, median of {REPETITIONS} repetitions in turn.\n\n"
        "| from position | tokens/s | process memory |\n|---:|---:|---:|\n"
        + "".join(
            f"| {p:,} | {speeds[p]:.0f} | {resident / 2**20:.1f} MiB |\n"
            for p, resident in zip(starts, memory, strict=True)
        )
        + f"\nSpeed {change:+.1f} %, memory {growth:+.2f} %.\n"
    )
    print(text)
    (output / "constant-cost.md").write_text(text)


if __name__ == "__main__":
    main()
