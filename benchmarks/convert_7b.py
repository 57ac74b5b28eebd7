"""Peak memory of converting a random 7B checkpoint in bf16: `python benchmarks/convert_7b.py DIR`.

Needs 30 GB of disk in DIR, and removes what it made. Writes convert-7b.md beside this file.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gecko_mlc.runtime import machine


def timed(*arguments: str | Path) -> tuple[float, float]:
    """Seconds and peak resident GiB of a gecko-mlc command."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gecko_mlc", *map(str, arguments)], check=True)
    # The largest of all children so far: commands are run in the order of what they need.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return time.perf_counter() - begun, peak


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder / "gecko-7b-benchmark"
    checkpoint, model = folder / "checkpoint", folder / "model"
    try:
        made = timed("random_weight", "gecko-7b", "--dtype", "bfloat16", "-o", checkpoint)
        size = sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")) / 1e9
        converted = timed("convert_weight", checkpoint, "--quantization", "q0bf16", "-o", model)
        shards = len(list(model.glob("params_shard_*.bin")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = (
        f"# Converting gecko-7b on {machine.cpu_name()}, {machine.usable_cores()} cores\n\n"
        f"| | GB | seconds | peak GiB |\n|---|---:|---:|---:|\n"
        f"| `random_weight`, bf16 | {size:.1f} | {made[0]:.0f} | {made[1]:.2f} |\n"
        f"| `convert_weight`, q0bf16, {shards} shards | {size:.1f} | {converted[0]:.0f} | {converted[1]:.2f} |\n\n"
        "Peaks are of the largest process up to there.\n"
    )
    print(text)
    (Path(__file__).parent / "convert-7b.md").write_text(text)


if __name__ == "__main__":
    main()
