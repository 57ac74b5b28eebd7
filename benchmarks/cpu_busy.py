"""Decode beside other busy processes: `python benchmarks/cpu_busy.py` on a machine where nothing else runs.

The demo's decode speed on this CPU, with one thread and with one for each usable core, alone and beside as many busy
processes as there are cores; in turn, the median of the rounds. Writes cpu-busy.md into results/.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gecko_mlc.api import load_model
from gecko_mlc.runtime.devices import host

ROUNDS, SECONDS = 9, 2.0


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that do nothing, and that all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    model, cores = load_model("gecko-demo", device="cpu"), host.usable_cores()

    def tokens_per_second(threads: int) -> float:
        model.library.player.threads = threads
        begun, tokens = time.perf_counter(), 0
        while time.perf_counter() < begun + SECONDS:
            model.engine.step([0])
            model.engine.fetch_tokens([0])()
            tokens += 1
        return tokens / (time.perf_counter() - begun)

    model.engine.extend(0, model.encode_prompt("The king"))
    speeds: dict[tuple[int, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for processes in (0, cores):
            with busy(processes):
                for threads in sorted({1, cores}):
                    speeds.setdefault((threads, processes), []).append(tokens_per_second(threads))
    text = (
        f"# Decode beside busy processes, gecko-demo on {host.cpu_name()}, {cores} cores\n\n"
        f"Tokens/s, median of {arguments.rounds} rounds of {SECONDS:g} s in turn, and the slowest and the fastest.\n\n"
        f"| threads | alone | beside {cores} busy processes |\n|---:|---:|---:|\n"
    )
    for threads in sorted({1, cores}):
        cells = [
            f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
            for found in (speeds[threads, processes] for processes in (0, cores))
        ]
        text += f"| {threads} | {' | '.join(cells)} |\n"
    print(text)
    (arguments.output / "cpu-busy.md").write_text(text)


if __name__ == "__main__":
    main()
