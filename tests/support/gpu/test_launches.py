"""Launches are recorded, and compared after another machine made them again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.tir_kernels.cuda.quantized.activations import LARGEST, QuantizedRow
from support.gpu import launches


def test_launches_are_recorded_and_compared() -> None:
    def launch(kernel: str, source: np.ndarray, result: np.ndarray) -> None:
        result[:2] = source[:2] * 2

    recorder = launches.Recorder(launch)
    source, result = np.arange(4, dtype=np.float32), np.full(4, np.nan, np.float32)
    recorder("double", source, result)
    rows, kept = recorder.recorded()
    recorded = json.loads(json.dumps(rows))

    def again(factor: float, last: float) -> dict[str, Any]:
        def run(row: dict[str, Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
            assert recorder.kernels[row["kernel"]] == "double"
            assert np.isnan(arrays[1]).all()
            return [arrays[0], np.array([0, 2 * factor, np.nan, last], np.float32)]

        return launches.replay(recorded, kept, run)

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
        return launches.error(row.pack(changed), expected, outgoing)

    small = np.abs(values[0, :32]).argmin()
    assert error(small, step) == 0.0
    assert 1e-5 < error(small, 3 * step) < 1e-3
    wrong = expected.copy()
    wrong.view(np.float32)[0, row.floats(1)] += 1
    assert launches.error(wrong, expected, outgoing) == np.inf
    wrong = expected.copy()
    wrong.view(np.float32)[0, row.floats(3)] += 1
    assert launches.error(wrong, expected, outgoing) > 1
