"""What of the GPU's benchmark needs no GPU: report, counting, comparisons, and parity with an engine on this CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_kernels
import cuda_parity
import cuda_quantize
import cuda_speed
import gpu
import numpy as np
import pytest
import torch
from cuda_costs import Cost, decode_costs, kernel_name
from cuda_report import to_markdown
from cuda_speed import kernel_rows, speed
from safetensors.numpy import save_file
from support.metadata import metadata
from support.models import load_golden, small_config

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.measure import bench
from gecko_mlc.tir_kernels.cuda.quantized.activations import LARGEST, QuantizedRow

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


def test_launches_are_recorded_and_compared() -> None:
    def launch(kernel: str, source: np.ndarray, result: np.ndarray) -> None:
        result[:2] = source[:2] * 2

    recorder = cuda_kernels.Recorder(launch)
    source, result = np.arange(4, dtype=np.float32), np.full(4, np.nan, np.float32)
    recorder("double", source, result)
    rows, kept = recorder.recorded()
    launches = json.loads(json.dumps(rows))

    def again(factor: float, last: float) -> dict[str, Any]:
        def run(row: dict[str, Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
            assert recorder.kernels[row["kernel"]] == "double"
            assert np.isnan(arrays[1]).all()
            return [arrays[0], np.array([0, 2 * factor, np.nan, last], np.float32)]

        return cuda_kernels.replay(launches, kept, run)

    assert not again(1 + 1e-6, np.nan)["failures"]
    assert again(1 + 1e-4, np.nan)["failures"]
    assert again(1, 0)["failures"] == [": inf in argument 1"]


def test_activations_that_a_kernel_rounds_may_be_a_step_apart() -> None:
    row = QuantizedRow(128, GroupLayout(quantization=QUANTIZATIONS["q4f16_1"].group, lanes=1, code_bits=4), 1)
    outgoing = {**row._asdict(), "layout": row.layout.model_dump()}
    values = np.random.default_rng(0).standard_normal((1, 128))
    step, expected = np.abs(values[0, :32]).max() / LARGEST, row.pack(values)

    def error(column: int, change: float) -> float:
        changed = values.copy()
        changed[0, column] += change
        return cuda_kernels.error(row.pack(changed), expected, outgoing)

    small = np.abs(values[0, :32]).argmin()
    assert error(small, step) == 0.0
    assert 1e-5 < error(small, 3 * step) < 1e-3
    wrong = expected.copy()
    wrong.view(np.float32)[0, row.floats(1)] += 1
    assert cuda_kernels.error(wrong, expected, outgoing) == np.inf
    wrong = expected.copy()
    wrong.view(np.float32)[0, row.floats(3)] += 1
    assert cuda_kernels.error(wrong, expected, outgoing) > 1


def test_golden_and_conversations(compiled: Callable[..., Path], tmp_path: Path) -> None:
    """With a library for this machine."""
    golden = load_golden("public_b")
    path = tmp_path / f"golden-{golden.name}.so"
    path.symlink_to(compiled(golden.config, "q0f32", 2))
    tensors = {k: np.ascontiguousarray(v) for k, v in golden.tensors.items()}
    save_file(tensors, path.with_suffix(".safetensors"))
    assert cuda_parity.golden(tmp_path)[path.stem] < 2e-4
    assert cuda_parity.conversations(tmp_path)[path.stem] < 1e-5


def test_many_sequences(compiled: Callable[..., Path]) -> None:
    library = Library(compiled(small_config(), "q0f32", 4))
    engine = cuda_parity.make_engine(library, cuda_parity.random_parameters(small_config(), "float32", "cpu"))
    rows = cuda_speed.batches(engine, (1, 4), LIMITS, steps=2)
    assert [row["sequences"] for row in rows] == [1, 4]
    assert rows[0]["percent_of_bytes_weights"] > rows[1]["percent_of_bytes_weights"]


@pytest.mark.parametrize("scheme", [name for name, scheme in QUANTIZATIONS.items() if scheme.group])
@pytest.mark.parametrize("shape", [(5, 70), (3, 7), (16, 64)])
@pytest.mark.parametrize("lanes", [1, 8])
def test_quantized_as_the_package_does(scheme: str, shape: tuple[int, int], lanes: int) -> None:
    group = QUANTIZATIONS[scheme].group
    layout = GroupLayout(quantization=group, lanes=lanes, code_bits=group.bits)
    weight = np.random.default_rng(0).standard_normal(shape).astype(group.scale_dtype)
    weight[0] = 0
    packed, values = cuda_quantize.quantize(layout, torch.from_numpy(weight))
    q_weight, q_scale = group.quantize(weight)
    np.testing.assert_array_equal(packed.numpy(), layout.pack(q_weight, q_scale, shape[1]))
    np.testing.assert_array_equal(values, group.dequantize(q_weight, q_scale, shape[1]).astype(group.scale_dtype))


@pytest.mark.parametrize(("scheme", "dtype"), [("q0bf16", "bfloat16"), ("q4f16_1", "float16")])
def test_logits(compiled: Callable[..., Path], scheme: str, dtype: str) -> None:
    config = small_config()
    library = Library(compiled(config, scheme))
    parameters = cuda_parity.random_parameters(config, dtype, "cpu")
    engine = cuda_parity.make_engine(library, parameters)
    result = cuda_parity.logits(engine, config, parameters, steps=8)
    assert result["prefill_relative_error"] < 3e-2
    assert result["decode_relative_error"] < 3e-2
    assert result["greedy_compared"] > 5
    assert result["greedy_differing"] == 0
