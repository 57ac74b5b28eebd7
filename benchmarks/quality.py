"""What quantization costs in quality: `python benchmarks/quality.py [CHECKPOINT TEXT]`.

Converts the demo, or another checkpoint, to every scheme of weights and runs it with every dtype of the state, on the
demo's held-out text or another one, beside fp32. Writes quality-NAME.md and quality-NAME.json into results/.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from gecko_mlc.api import load_model
from gecko_mlc.formats.quantization import QUANTIZATIONS, STATE_DTYPES
from gecko_mlc.formats.weights import read_tensor_cache
from gecko_mlc.runtime.measure.evaluation import Report, evaluate
from gecko_mlc.runtime.text.long_text import read_blocks

BASELINE = "q0f32"
HELD_OUT = "the demo's held-out text (the first nine chapters of Moby-Dick, which neither model nor tokenizer has seen)"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a folder with its config and tokenizer")
    parser.add_argument("text", type=Path, nargs="?", help="a text that the checkpoint was not trained on")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.text is None):
        parser.error("a checkpoint and a text go together")
    if arguments.checkpoint is None:
        with demo_files() as (checkpoint, text):
            name, described, result = checkpoint.name, HELD_OUT, measure(checkpoint, text)
    else:
        name, described = arguments.checkpoint.resolve().name, arguments.text.name
        result = measure(arguments.checkpoint, arguments.text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"quality-{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.output / f"quality-{name}.md").write_text(to_markdown(name, described, result))


@contextmanager
def demo_files() -> Iterator[tuple[Path, Path]]:
    """The shipped demo as a checkpoint, and its held-out text."""
    with tempfile.TemporaryDirectory() as temporary, resources.as_file(resources.files("gecko_mlc.demo")) as shipped:
        checkpoint = Path(temporary) / "gecko-demo"
        checkpoint.mkdir()
        for file in ("config.json", "tokenizer.json"):
            shutil.copyfile(shipped / file, checkpoint / file)
        (checkpoint / "model.safetensors").write_bytes(lzma.decompress((shipped / "model.safetensors.xz").read_bytes()))
        yield checkpoint, shipped / "held_out.txt"


def measure(checkpoint: Path, text: Path) -> dict[str, Any]:
    """What it ran on, and a report for each scheme and dtype of the state, with the bytes of the weights."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        # Libraries of two dozen kinds are not for the user's cache.
        os.environ["GECKO_MLC_HOME"] = temporary
        folders = {name: convert(checkpoint, name, Path(temporary) / name) for name in QUANTIZATIONS}
        baseline = load_model(folders[BASELINE])
        for folder in folders.values():
            for state_dtype in STATE_DTYPES:
                model = load_model(folder, state_dtype=state_dtype)
                with text.open("rb") as file:
                    report = evaluate(model, read_blocks(file, str(text)), baseline)
                print(*cells(report, weight_bytes(folder)), sep="\t", flush=True)
                rows.append({**report.model_dump(), "weight_bytes": weight_bytes(folder)})
        target = baseline.engine.metadata.target
    # Kernels differ: some CPUs multiply quantized weights in integers, which rounds what they are multiplied with.
    chip = baseline.engine.player.device_name()
    return {"machine": f"{chip} ({target.mcpu})", "rows": rows}


def convert(checkpoint: Path, quantization: str, folder: Path) -> Path:
    """A model folder of the checkpoint."""
    command = [sys.executable, "-m", "gecko_mlc", "convert_weight", str(checkpoint)]
    subprocess.run([*command, "--quantization", quantization, "-o", str(folder)], check=True)
    return folder


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(shard.nbytes for shard in read_tensor_cache(folder).records)


COLUMNS = ("weights", "state", "MB", "perplexity", "of fp32's", "KL divergence, nats", "top-1 agreement")


def cells(report: Report, size: int) -> list[str]:
    """A row of the table."""
    c = report.comparison
    assert c is not None and c.perplexity_ratio.error is not None
    return [
        report.quantization,
        report.state_dtype,
        f"{size / 1e6:.1f}",
        f"{report.perplexity.mean:.3f}",
        f"{100 * (c.perplexity_ratio.mean - 1):+.3f} ± {100 * c.perplexity_ratio.error:.3f} %",
        f"{c.kl_divergence.mean:.2e} ± {c.kl_divergence.error:.0e}",
        f"{100 * c.top1_agreement:.2f} %",
    ]


def to_markdown(name: str, text: str, result: dict[str, Any]) -> str:
    """The table, and what it is of."""
    reports = [Report.model_validate(row) for row in result["rows"]]
    sizes = [row["weight_bytes"] for row in result["rows"]]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cells(report, size)) + " |" for report, size in zip(reports, sizes, strict=True)]
    return (
        f"# What quantization costs, {name}\n\nOn {text}: {reports[0].tokens:,} tokens, {reports[0].bytes:,} bytes,"
        f" one stream.\nBeside {BASELINE} with a float32 state, over the same tokens; errors as if these were"
        f" independent.\n{result['machine']}.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
