"""What the benchmarks on this CPU share: a model of random weights, and how measurements are written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gecko_mlc.api import Model, load_model
from gecko_mlc.config import GeckoConfig
from gecko_mlc.convert.chat_config import plan_files
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.measure import bench


def load(config: GeckoConfig, checkpoint: Path, scheme: str, folder: Path) -> Model:
    """The checkpoint's weights as the quantization `scheme`, by way of a model folder that is written."""
    convert_weights(config, open_checkpoint(checkpoint), quantization(scheme), folder)
    plan_files(checkpoint, quantization(scheme)).write(folder)
    return load_model(folder, device="cpu", say=print)


def machine(ceilings: bench.Ceilings) -> dict[str, Any]:
    """What a report says of this machine."""
    return {
        "schema_version": bench.SCHEMA_VERSION,
        "cpu": host.cpu_name(),
        "cores": host.usable_cores(),
        "ceilings": ceilings.model_dump(),
        # What of several runs is told, and what percentages are of.
        "limits_are": "best",
        "speeds_are": "median",
    }


def limits(report: dict[str, Any], repetitions: int) -> str:
    """The machine's limits, and how often it was measured beside them."""
    ceilings = report["ceilings"]
    product = f"{ceilings['matmul_gflop_per_second']:.0f} GFLOP/s"
    if of_bytes := ceilings.get("byte_matmul_gop_per_second"):
        product += f", one of bytes {of_bytes:.0f} GOP/s (derived from that)"
    return (
        f"Limits measured before every run, {report.get('limits_are', 'median')}: memory reads"
        f" {ceilings['memory_gb_per_second']:.1f} GB/s, an fp32 product of 1024³ {product}. {repetitions} repetitions,"
        f" {report.get('speeds_are', 'mean')}."
    )


def cells(m: dict[str, Any]) -> str:
    """A measurement's columns: tokens/s, ±, GB/s, GFLOP/s, % of machine."""
    rates = [m[name] for name in ("tokens_per_second", "deviation", "gb_per_second", "gflop_per_second")]
    return " | ".join([*(f"{rate:.1f}" if rate else "" for rate in rates), f"{m['percent_of_ceiling']:.0f}"])


def write(output: Path, name: str, text: str, report: dict[str, Any]) -> None:
    """Print the text; write it and the report as NAME.md and NAME.json."""
    print(text)
    (output / f"{name}.md").write_text(text)
    (output / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
