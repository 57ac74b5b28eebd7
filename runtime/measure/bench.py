"""The measuring core of all benchmarks: speeds, and what part of the machine they use.

The machine's own limits are measured in the same run, just before what is compared with them.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from gecko_mlc.formats.library import Metadata
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure.ceilings import Ceilings, Device, Machine, median
from gecko_mlc.runtime.measure.costs import decode_bytes, prefill_flop

SCHEMA_VERSION = 1


class Measurement(BaseModel):
    """One test: `tokens` tokens from `depth` on, `repetitions` times; speeds as mean and deviation.

    Decode is compared with the memory's bandwidth (bytes it has to read and write, counted), prefill
    with the product's rate (operations counted).
    """

    test: str
    tokens: int
    depth: int
    repetitions: int
    tokens_per_second: float
    deviation: float
    gb_per_second: float | None = None
    gflop_per_second: float | None = None
    percent_of_ceiling: float | None
    resident_bytes: int | None


class Run(NamedTuple):
    """One run of a test, and the limits measured just before it."""

    seconds: float
    ceilings: Ceilings


class Report(BaseModel):
    """All of a run; the JSON form of `bench`."""

    schema_version: int = SCHEMA_VERSION
    model: str
    quantization: str
    cpu: str
    cores: int
    gpu: str | None
    target: str
    ceilings: Ceilings
    measurements: list[Measurement]


def run(
    engine: Engine,
    model: str,
    prompt_tokens: int,
    decode_tokens: int,
    depths: Sequence[int] = (0,),
    repetitions: int = 5,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measure prefill of `prompt_tokens` and decode of `decode_tokens` after each of `depths` tokens.

    Decode times whole steps without sampling. Tokens are random, of a fixed seed; one warm-up run is not
    counted.
    """
    metadata = engine.metadata
    progress("the machine's limits")
    player = engine.player
    limits = Machine() if player.on_host else Device(player)
    rng = np.random.default_rng(0)
    stream = rng.integers(0, engine.vocab_size, max(depths) + prompt_tokens + decode_tokens + 1).tolist()
    counts = {"prefill": prompt_tokens, "decode": decode_tokens}
    runs: dict[tuple[str, int], list[Run]] = {}
    for repetition in range(repetitions + 1):
        for depth in depths:
            for test, count in counts.items():
                if not count:
                    continue
                progress(f"{test} at {depth:,}, run {repetition} of {repetitions}")
                engine.reset(0)
                if depth:
                    engine.extend(0, stream[:depth])
                ceilings = limits.measure()
                seconds = time_test(engine, test, stream[depth : depth + count])
                # The first one warms up.
                if repetition:
                    runs.setdefault((test, depth), []).append(Run(seconds, ceilings))
    return Report(
        model=model,
        quantization=metadata.quantization,
        cpu=host.cpu_name(),
        cores=host.usable_cores(),
        gpu=None if player.on_host else player.device_name(),
        target=metadata.target.mcpu,
        ceilings=median([run.ceilings for several in runs.values() for run in several]),
        measurements=[
            summarize(metadata, test, counts[test], depth, several) for (test, depth), several in runs.items()
        ],
    )


def summarize(metadata: Metadata, test: str, count: int, depth: int, runs: Sequence[Run]) -> Measurement:
    """Runs of one test of the model of `metadata` as a measurement."""
    if test == "prefill":
        return measurement(test, count, depth, prefill_flop(metadata, depth, count), runs)
    return measurement(test, count, depth, sum(decode_bytes(metadata, depth + i) for i in range(count)), runs)


def measurement(test: str, count: int, depth: int, work: int, runs: Sequence[Run]) -> Measurement:
    """Runs of one test, each of `work` operations (prefill) or bytes (decode), as a measurement.

    Each is compared with the limits measured just before it.
    """
    speeds = [count / run.seconds for run in runs]
    rate = work / 1e9 / statistics.fmean(run.seconds for run in runs)
    if test == "prefill":
        limits = [run.ceilings.matmul_gflop_per_second for run in runs]
    else:
        limits = [run.ceilings.memory_gb_per_second for run in runs]
    parts = [work / 1e9 / run.seconds / limit for run, limit in zip(runs, limits, strict=True) if limit is not None]
    return Measurement(
        test=test,
        tokens=count,
        depth=depth,
        repetitions=len(runs),
        tokens_per_second=statistics.fmean(speeds),
        deviation=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        gb_per_second=rate if test == "decode" else None,
        gflop_per_second=rate if test == "prefill" else None,
        percent_of_ceiling=100 * statistics.fmean(parts) if parts else None,
        resident_bytes=host.resident_bytes(),
    )


def time_test(engine: Engine, test: str, tokens: Sequence[int]) -> float:
    """Seconds that `engine` takes for a test, in slot 0."""
    engine.synchronize()
    begun = time.perf_counter()
    if test == "prefill":
        engine.extend(0, tokens)
    else:
        for _ in tokens:
            engine.decode([0])
    engine.synchronize()
    return time.perf_counter() - begun


COLUMNS = ("test", "tokens", "depth", "tokens/s", "±", "GB/s", "GFLOP/s", "% of machine")


def rows(report: Report) -> list[list[str]]:
    """The measurements as text, a row each, for the `COLUMNS`."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    return [
        [
            m.test,
            str(m.tokens),
            str(m.depth),
            number(m.tokens_per_second, 1),
            number(m.deviation, 1),
            number(m.gb_per_second, 1),
            number(m.gflop_per_second, 0),
            number(m.percent_of_ceiling, 0),
        ]
        for m in report.measurements
    ]


def summary(report: Report) -> str:
    """A line on the model, the machine and its limits."""
    c = report.ceilings
    if report.gpu is not None:
        return f"{report.model} {report.quantization}, {report.gpu}: copies {c.memory_gb_per_second:.0f} GB/s"
    return (
        f"{report.model} {report.quantization}, {report.cpu}, {report.cores} cores ({report.target}):"
        f" reads {c.memory_gb_per_second:.1f} GB/s, multiplies {c.matmul_gflop_per_second:.0f} GFLOP/s"
    )


def to_markdown(report: Report) -> str:
    """The report as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * 1 + " ---: |" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    return summary(report) + "\n\n" + "\n".join(lines) + "\n"


def to_csv(report: Report) -> str:
    """The report as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(report))
    return text.getvalue()
