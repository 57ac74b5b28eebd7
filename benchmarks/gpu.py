"""Gecko on an NVIDIA GPU, in one run with the GPU's limits and the peers: `python benchmarks/gpu.py gecko-7b`.

Parity first: every kernel's tests, the golden vectors, two conversations in turn and a library loaded again, the preset
against fp32 arithmetic on the same rounded weights. Then speeds: decoding over whole chunks, the time between tokens,
prefill, each kernel, PyTorch's Gecko. Weights are made on the GPU from a seed. Writes cuda-<preset>.md and .json into
results/, or --output; `--plot` draws a picture of the .json beside it (with matplotlib).

Where the GPU's machine has no compiler: `--prepare FOLDER` on one that has, then `--measure FOLDER` there.
"""

# Not called cuda.py: PyTorch imports a package of that name, and finds this folder first.

from __future__ import annotations

import argparse
import faulthandler
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuda_report import plot, to_markdown

from gecko_mlc.config import preset
from gecko_mlc.formats.quantization import quantization

# The tests' parity and random models.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

# Quantizations; "q4f16_1+int8" has caches of another dtype than its own.
SCHEMES = ("q0bf16", "q0f16")
# Those with "@" once for each scheme.
PARTS = ("kernels", "golden", "conversations", "decode@", "generate@", "between@", "prefill@", "profile@", "parity@")
PEERS = ("eager", "compiled")
# Only when asked for: many sequences take a library, and memory, of their own; loading writes the weights of the first
# scheme, a plain one, to the disk.
OPTIONAL_PARTS = ("batches@", "load")
SEQUENCES = (1, 2, 4, 8, 16, 32)
PART_SECONDS = 240
# The exit status of a process whose GPU context is lost.
LOST = 75


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="or, for --plot, the .json")
    parser.add_argument("--arch", help="what to compile for, like sm_90; by default this machine's GPU")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="only compile, into this folder")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure what --prepare made")
    names, optional = (",".join(p.rstrip("@") for p in parts) for parts in ((*PARTS, *PEERS), OPTIONAL_PARTS))
    parser.add_argument("--parts", default=names, help=f"of {names},{optional}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    schemes, parts = a.schemes.split(","), a.parts.split(",")
    report = Report(a.output / f"cuda-{a.preset}.json")
    if a.plot:
        plot(json.loads(Path(a.preset).read_text()), Path(a.preset).with_suffix(".svg"))
    elif a.worker:
        work(a.preset, schemes, parts, a.measure, report)
    elif a.prepare:
        prepare(a.preset, schemes, parts, a.arch, a.prepare)
    elif a.measure:
        measure(a.preset, schemes, parts, a.measure, report)
    else:
        with tempfile.TemporaryDirectory() as folder:
            prepare(a.preset, schemes, parts, a.arch, Path(folder))
            measure(a.preset, schemes, parts, Path(folder), report)


def prepare(name: str, schemes: Sequence[str], parts: Sequence[str], arch: str | None, folder: Path) -> None:
    """Compile into `folder` what the parts need: the preset, the golden configs, the kernels' tests."""
    # The compiler, before anything loads TVM's runtime alone.
    import tvm  # noqa: F401
    from support.gpu.launches import prepare_kernels
    from support.gpu.parity import prepare_golden

    folder.mkdir(parents=True, exist_ok=True)
    slots = [1, *([max(SEQUENCES)] if "batches" in parts else [])]
    presets = itertools.product(schemes, slots) if {*parts} - {"kernels", "golden", "conversations"} else ()
    for scheme, count in presets:
        quantization, _, state_dtype = scheme.partition("+")
        # In processes of their own: a compiler's memory goes back with it.
        command = [sys.executable, "-m", "gecko_mlc", "compile", name, "--quantization", quantization]
        command += ["--device", "cuda", *(["--arch", arch] if arch else [])]
        command += [*(["--state-dtype", state_dtype] if state_dtype else []), "--overrides", f"max_batch_size={count}"]
        subprocess.run([*command, "-o", str(library_path(folder, name, scheme, count))], check=True)
    if {"golden", "conversations"} & {*parts}:
        prepare_golden(arch, folder)
    if "kernels" in parts:
        prepare_kernels(arch, folder)


def library_path(folder: Path, name: str, scheme: str, slots: int = 1) -> Path:
    """What `prepare` calls a library."""
    return folder / f"{name}-{scheme}-{slots}.so"


class Report:
    """The results so far, in a file that lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """What is there."""
        result: dict[str, Any] = json.loads(self.path.read_text())
        return result

    def add(self, label: str, value: Any) -> None:
        """Add a part, and write everything."""
        self.write({**self.read(), label: value})
        print(f"{label}: {json.dumps(value)[:2000]}", flush=True)

    def write(self, result: dict[str, Any]) -> None:
        """As JSON and as Markdown."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(result, indent=2) + "\n")
        self.path.with_suffix(".md").write_text(to_markdown(result))


def plan(schemes: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The labels of what to do, in order; what a scheme's engine does is together."""
    labels = ["ceilings"]
    labels += [part for part in PARTS if part in parts]
    for scheme in schemes:
        labels += [f"{part[:-1]} {scheme}" for part in PARTS if "@" in part and part[:-1] in parts]
    labels += [part for part in PEERS if part in parts]
    for part in OPTIONAL_PARTS:
        names = [f"{part[:-1]} {scheme}" for scheme in schemes] if "@" in part else [part]
        labels += [name for name in names if part.rstrip("@") in parts]
    return labels


def measure(name: str, schemes: Sequence[str], parts: Sequence[str], folder: Path, report: Report) -> None:
    """Run the parts in processes that may die: what was measured before stays, what comes after is still run."""
    import torch

    report.write({"preset": name, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__})
    options = ["--schemes", ",".join(schemes), "--parts", ",".join(parts), "--measure", str(folder)]
    command = [sys.executable, __file__, name, *options, "--output", str(report.path.parent), "--worker"]
    while left := [label for label in plan(schemes, parts) if label not in report.read()]:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stderr)
        running = next((label for label in left if label not in report.read()), None)
        if running is not None and done.returncode != LOST:
            report.add(running, {"error": f"exit status {done.returncode}\n{done.stderr[-2000:]}"})


def work(name: str, schemes: Sequence[str], parts: Sequence[str], folder: Path, report: Report) -> None:
    """Run the parts that the report does not have yet."""
    import torch

    for label in plan(schemes, parts):
        if label in report.read():
            continue
        # Whatever hangs, in whatever library, ends.
        faulthandler.dump_traceback_later(PART_SECONDS, exit=True)
        begun = time.perf_counter()
        try:
            value = run(label, name, schemes, folder, report)
        except Exception:
            value = {"error": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        report.add(label, value)
        print(f"  {time.perf_counter() - begun:.0f} s", flush=True)
        try:
            torch.cuda.synchronize()
        except Exception:
            sys.stdout.flush()
            os._exit(LOST)
        torch.cuda.empty_cache()


def run(label: str, name: str, schemes: Sequence[str], folder: Path, report: Report) -> Any:
    """One part."""
    import cuda_load
    import cuda_speed
    from peers import pytorch_gpu
    from support.gpu import launches, parity

    from gecko_mlc.runtime.library import Library

    config, limits = preset(name), report.read().get("ceilings", {})
    part, _, scheme = label.partition(" ")
    slots = max(SEQUENCES) if part == "batches" else 1
    library = library_path(folder, name, scheme or schemes[0], slots)
    if not scheme or slots > 1:
        _subject.cache_clear()
    if scheme:
        engine, parameters = _subject(library, name)
    parts: dict[str, Callable[[], Any]] = {
        "ceilings": cuda_speed.ceilings,
        "kernels": lambda: launches.kernels(folder),
        "golden": lambda: parity.golden(folder),
        "conversations": lambda: parity.conversations(folder),
        "decode": lambda: cuda_speed.decode(engine, limits),
        "generate": lambda: cuda_speed.generate(engine),
        "between": lambda: cuda_speed.between_tokens(engine),
        "prefill": lambda: cuda_speed.prefill(engine, limits),
        "profile": lambda: cuda_speed.profile(engine, limits),
        "batches": lambda: cuda_speed.batches(engine, SEQUENCES, limits),
        "parity": lambda: parity.logits(engine, config, parameters),
        "eager": lambda: pytorch_gpu.eager(Library(library), config, limits),
        "compiled": lambda: pytorch_gpu.compiled(Library(library), config, limits),
        "load": lambda: cuda_load.measure(library, config, quantization(schemes[0])),
    }
    return parts[part]()


@functools.lru_cache(maxsize=1)
def _subject(library: Path, name: str) -> tuple[Any, Any]:
    """An engine with random parameters, and those; the last one made is kept."""
    from support.gpu.models import make_engine, random_parameters

    from gecko_mlc.runtime.library import Library

    opened = Library(library)
    parameters = random_parameters(preset(name), quantization(opened.metadata.quantization).model_dtype)
    return make_engine(opened, parameters), parameters


if __name__ == "__main__":
    main()
