"""What of the GPU's benchmark needs no GPU: report and counting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_speed
import gpu
import pytest
from cuda_costs import Cost, decode_costs, kernel_name
from cuda_report import to_markdown
from cuda_speed import kernel_rows, speed
from support.gpu.models import make_engine, random_parameters
from support.metadata import metadata
from support.models import small_config

from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.measure import bench

LIMITS = {"copy_gb_per_second": 4000.0, "bf16_tflop_per_second": 800.0}
ROW = {"position": 8192, "tokens_per_second": 220.5, "gb_per_second": 3640.0, "percent_of_copy": 91.0}
RESULT: dict[str, Any] = {
    "preset": "gecko-7b",
    "gpu": "NVIDIA H200",
    "ceilings": LIMITS,
    "kernels": {"launches": 3, "error_of_tolerance": {"test_linear.py::test_gate": 0.02}, "failures": ["test_x[1]"]},
    "golden": {"golden-public_a": 1.2e-5},
    "decode q0bf16": {"chunks": [ROW, ROW], "far_over_near": 1.0, "bytes_grown": 0},
    "batches q0bf16": [
        {
            "sequences": 8,
            "tokens_per_second": 900.0,
            "gb_per_second": 2000.0,
            "percent_of_copy": 50.0,
            "percent_of_cublas": 3.0,
            "percent_of_bytes_weights": 40.0,
        }
    ],
    "between q0bf16": {"median": 4.5, "p99": 5.0, "largest": 9.0, "p99_over_median": 1.11},
    "prefill q0bf16": [
        {"tokens": 2048, "tokens_per_second": 30000.0, "tflop_per_second": 480.0, "percent_of_cublas": 60.0}
    ],
    "profile q0bf16": {"decode": [{"kernel": "gate", "launches": 32.0, "microseconds": 1000.0}]},
    "parity q0bf16": {"error": "Traceback\nRuntimeError: boom"},
    "compiled": {**ROW, "tokens_per_second": 142.0, "compile_seconds": 60.0},
}


def test_report() -> None:
    text = to_markdown(RESULT)
    assert "| gecko-mlc q0bf16 | 8,192 | 220.5 | 3,640 | 91.0 |" in text
    assert "| PyTorch, torch.compile, CUDA graph, bf16 | 8,192 | 142.0 |" in text
    assert "| golden-public_a, fp32: largest difference from float64 logits, over splits | 1.2e-05 |" in text
    assert "| q0bf16 | 8 | 900.0 | 2,000 | 50.0 | 3.00 | 40.0 |" in text
    assert "- failed: test_x[1]" in text
    assert "## parity q0bf16 failed\n\n```\nTraceback\nRuntimeError: boom\n```" in text
    assert "4,000 GB/s" in to_markdown({"preset": "p", "gpu": "g", "ceilings": LIMITS})


def test_parts_of_a_scheme_are_together() -> None:
    parts = ["decode", "golden", "batches", "load", "compiled", "prefill"]
    assert gpu.plan(["a", "b"], parts) == [
        *["ceilings", "golden", "decode a", "prefill a", "decode b", "prefill b"],
        *["compiled", "batches a", "batches b", "load"],
    ]


def test_what_was_measured_stays(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "cuda-x.json")
    report.write({"preset": "x", "gpu": "g"})
    report.add("ceilings", LIMITS)
    assert json.loads((tmp_path / "cuda-x.json").read_text())["ceilings"] == LIMITS
    assert "800 TFLOP/s" in (tmp_path / "cuda-x.md").read_text()


def test_speed_counts_every_position() -> None:
    m = metadata()
    work = sum(bench.decode_bytes(m, 4 * 2048 + i) for i in range(2048))
    assert speed(m, 4, 0.005, LIMITS)["gb_per_second"] == pytest.approx(work / 2048 / 0.005 / 1e9)


def test_kernels_add_up_to_the_step() -> None:
    m, position = metadata(), 4 * 2048 + 1024
    assert sum(cost.bytes for cost in decode_costs(m, position).values()) == pytest.approx(
        bench.decode_bytes(m, position), rel=1e-3
    )
    assert sum(cost.flop for cost in decode_costs(m, position).values()) == pytest.approx(
        bench.prefill_flop(m, position, 1) - 32 * 4 * 1024 * 2048, rel=2e-3
    )


def test_overlapping_kernels_add_up_to_their_span() -> None:
    names = ["embedding_kernel", "gate1_kernel", "gate1_kernel", "linear_residual_kernel_1"]
    assert [kernel_name(name) for name in names] == ["embedding", "gate", "gate", "linear_residual"]
    events = list(zip(names, [0.0, 8.0, 19.0, 32.0], [10.0, 20.0, 30.0, 36.0], strict=True))
    rows = {row["kernel"]: row for row in kernel_rows(events, 1, {"gate": Cost(40_000_000, 1)}, LIMITS)}
    assert [rows[name]["microseconds"] for name in ("embedding", "gate", "linear_residual", "all")] == [10, 20, 4, 36]
    assert rows["gate"]["launches"] == 2
    assert rows["gate"]["gb_per_second"] == pytest.approx(2000)
    assert rows["gate"]["percent_of_limit"] == pytest.approx(50)
    assert "gb_per_second" not in rows["embedding"]


def test_many_sequences(compiled: Callable[..., Path]) -> None:
    library = Library(compiled(small_config(), "q0f32", 4))
    engine = make_engine(library, random_parameters(small_config(), "float32", "cpu"))
    rows = cuda_speed.batches(engine, (1, 4), LIMITS, steps=2)
    assert [row["sequences"] for row in rows] == [1, 4]
    assert rows[0]["percent_of_bytes_weights"] > rows[1]["percent_of_bytes_weights"]
