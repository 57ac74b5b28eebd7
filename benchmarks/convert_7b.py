"""Rates and peak memory of converting a random 7B checkpoint in bf16: `python benchmarks/convert_7b.py DIR`.

Needs 30 GB of disk in DIR, and removes what it made. Writes convert-7b.md into results/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gecko_mlc.runtime.devices import host


def timed(*arguments: str | Path) -> tuple[float, float]:
    """Seconds and peak resident GiB of a gecko-mlc command."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "gecko_mlc", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{arguments[0]} failed")
    return time.perf_counter() - begun, usage.ru_maxrss / 2**20


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder / "gecko-7b-benchmark"
    checkpoint, model = folder / "checkpoint", folder / "model"
    rows, load = [], os.getloadavg()[0]
    try:
        seconds, peak = timed("random_weight", "gecko-7b", "--dtype", "bfloat16", "-o", checkpoint)
        size = total_gb(checkpoint, "*.safetensors")
        rows.append(f"| `random_weight`, bf16 | | {size:.1f} | {seconds:.0f} | {size / seconds:.2f} | {peak:.2f} |")
        for scheme in ("q4f16_1", "q0bf16"):
            seconds, peak = timed("convert_weight", checkpoint, "--quantization", scheme, "-o", model)
            written = total_gb(model, "*.bin")
            rate = size / seconds
            rows.append(
                f"| `convert_weight`, {scheme} | {size:.1f} | {written:.1f} | {seconds:.0f} | {rate:.2f} | {peak:.2f} |"
            )
            shutil.rmtree(model)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = (
        f"# Converting gecko-7b on {host.cpu_name()}, {host.usable_cores()} cores\n\n"
        "| | GB read | GB written | seconds | GB/s of the checkpoint | peak GiB |\n|---|---:|---:|---:|---:|---:|\n"
        + "\n".join(rows)
        + f"\n\nThe machine's load average was {load:.0f} before it began: what else ran took its share.\n"
    )
    print(text)
    (Path(__file__).parent / "results" / "convert-7b.md").write_text(text)


def total_gb(folder: Path, pattern: str) -> float:
    """Of the files that match."""
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 1e9


if __name__ == "__main__":
    main()
