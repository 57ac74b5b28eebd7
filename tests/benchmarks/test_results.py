"""The published tables are those of the published reports."""

from __future__ import annotations

import json
from pathlib import Path

import cpu_common
import quality
from cuda_report import to_markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_gpu() -> None:
    report = json.loads((RESULTS / "cuda-gecko-7b.json").read_text())
    assert to_markdown(report) == (RESULTS / "cuda-gecko-7b.md").read_text()


def test_quality() -> None:
    report = json.loads((RESULTS / "quality-gecko-demo.json").read_text())
    published = (RESULTS / "quality-gecko-demo.md").read_text()
    assert quality.to_markdown("gecko-demo", quality.HELD_OUT, report) == published


def test_cpu() -> None:
    for name in ("cpu-gecko-120m-q0f32", "cpu-llama-cpp-gecko-1b"):
        report, published = (json.loads((RESULTS / f"{name}.json").read_text()), (RESULTS / f"{name}.md").read_text())
        assert cpu_common.limits(report, report.get("repetitions", 5)) in published
        assert all(f"| {cpu_common.cells(m)} |" in published for m in report["measurements"].values())
