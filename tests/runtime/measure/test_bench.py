"""Speeds: what of several runs is told, what they are compared with, and that nothing measured is lost."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from itertools import chain, count

import pytest
from support.models import random_parameters, small_config

from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure import bench
from gecko_mlc.runtime.measure.bench import Report, Run, Stream, measurement
from gecko_mlc.runtime.measure.ceilings import Ceilings, best
from gecko_mlc.runtime.state.slots import slots_of

LIMITS = Ceilings(memory_gb_per_second=10, matmul_gflop_per_second=100, byte_matmul_gop_per_second=400)
SLOWER = Ceilings(memory_gb_per_second=5, matmul_gflop_per_second=50, byte_matmul_gop_per_second=200)


@pytest.fixture
def small(engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of one slot, on a machine whose limits are known."""

    class Known:
        def measure(self) -> Ceilings:
            return LIMITS

    monkeypatch.setattr(bench, "Machine", Known)
    config = small_config(num_layers=1)
    return engine(config, random_parameters(config))


def test_all_rates_are_those_of_the_median_time() -> None:
    runs = [Run(seconds, LIMITS) for seconds in (4.0, 1.0, 2.0)]
    m = measurement("prefill", 100, 0, 60 * 10**9, runs)
    assert (m.tokens_per_second, m.gflop_per_second, m.gb_per_second) == (50, 30, None)
    assert m.deviation == pytest.approx(38.19, abs=0.01)
    assert measurement("decode", 100, 0, 10**9, runs[:1]).deviation is None


def test_no_more_than_the_machine_can_do() -> None:
    """The best that was seen of it; where the model was faster, out of a cache, that is the limit."""
    work, runs = 40 * 10**9, [Run(1.0, SLOWER), Run(1.0, LIMITS)]
    assert best([SLOWER, LIMITS]) == LIMITS
    assert measurement("prefill", 8, 0, work, runs).percent_of_ceiling == 40
    assert measurement("prefill", 8, 0, work, runs, of_bytes=True).percent_of_ceiling == 10
    assert measurement("decode", 8, 0, 5 * 10**9, runs).percent_of_ceiling == 50
    assert measurement("decode", 8, 0, work, runs).percent_of_ceiling == 100
    device = Ceilings(memory_gb_per_second=10, matmul_gflop_per_second=None)
    assert measurement("prefill", 8, 0, work, [Run(1.0, device)]).percent_of_ceiling is None


def test_a_stream_of_any_length_takes_little_memory(small: Engine) -> None:
    stream = Stream(small)
    pieces = list(stream.pieces(2**40 + 5, 20))
    assert [len(piece) for piece in pieces] == [3, 8, 8, 1]
    assert [*chain(*pieces)] == [*chain(*stream.pieces(2**40, 25))][5:]
    assert len(next(stream.pieces(0, 2**60))) == 8


def test_a_depth_is_filled_once(small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the one before; each run then begins there."""
    timed, extend = bench.time_test, small.extend
    begins: list[tuple[str, int]] = []
    consumed: list[int] = []

    def time_test(e: Engine, test: str, pieces: Iterable[list[int]], slot: int) -> float:
        begins.append((test, e.positions[slot]))
        return timed(e, test, pieces, slot)

    monkeypatch.setattr(bench, "time_test", time_test)
    monkeypatch.setattr(small, "extend", lambda slot, ids: (consumed.append(len(ids)), extend(slot, ids))[1])
    report = bench.run(small, "small", 5, 3, depths=[30, 0, 30], repetitions=2)
    assert begins == [("prefill", 0), ("decode", 0)] * 3 + [("prefill", 30), ("decode", 30)] * 3
    assert sum(consumed) == 30 + 5 * 6
    assert [(m.test, m.depth, m.repetitions) for m in report.measurements] == [
        (test, depth, 2) for depth in (0, 30) for test in ("prefill", "decode")
    ]
    assert report.complete


def test_an_interrupt_ends_with_what_was_measured(small: Engine) -> None:
    def run(steps: int) -> Report:
        left = count(steps, -1)

        def progress(what: str) -> None:
            if next(left) == 0:
                raise KeyboardInterrupt

        return bench.run(small, "small", 5, 3, repetitions=3, progress=progress)

    report = run(7)
    assert not report.complete
    assert [(m.test, m.repetitions) for m in report.measurements] == [("prefill", 2), ("decode", 2)]
    with pytest.raises(KeyboardInterrupt):
        run(2)


def test_a_dialogue_of_the_same_slot_goes_on(small: Engine) -> None:
    lease = slots_of(small).lease()
    with lease as slot:
        small.extend(slot, [3, 1, 4])
        before = small.logits(slot).tolist()
    bench.run(small, "small", 5, 3, repetitions=1)
    with lease as slot:
        assert (small.positions[slot], small.logits(slot).tolist()) == (3, before)


def test_csv_holds_numbers() -> None:
    """And in every row what tells it from those of other models and machines."""
    runs = [Run(0.001234567, LIMITS)]
    report = Report(
        model="m", quantization="q0f32", state_dtype="float32", cpu="c", cores=2, threads=1, gpu=None, target="t",
        ceilings=LIMITS, measurements=[measurement("decode", 3000, 0, 10**6, runs)], complete=True,
    )  # fmt: skip
    (row,) = csv.DictReader(bench.to_csv(report).splitlines())
    assert float(row["tokens_per_second"]) == pytest.approx(3000 / 0.001234567)
    assert [row[key] for key in ("deviation", "gflop_per_second", "gpu")] == ["", "", ""]
    assert [row[key] for key in ("model", "quantization", "cpu", "threads")] == ["m", "q0f32", "c", "1"]
    assert row["version"]
