"""The measuring core of all benchmarks: speeds, and what part of the machine they use.

The machine's own limits are measured in the same run, before each test; the best of them is what is compared with.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from gecko_mlc import __version__
from gecko_mlc.formats.library import Metadata
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure.ceilings import Ceilings, Device, Machine, best
from gecko_mlc.runtime.measure.costs import decode_bytes, prefill_flop
from gecko_mlc.runtime.measure.scoring import check_logits
from gecko_mlc.runtime.players.threads import default_threads
from gecko_mlc.runtime.state.slots import slots_of

SCHEMA_VERSION = 2
# Of a test, and of what precedes it.
MOST_TOKENS = 2**24
# About how many different tokens there are in a stream.
DIFFERENT_TOKENS = 2**16


class Measurement(BaseModel):
    """One test: `tokens` tokens from `depth` on, `repetitions` times.

    All rates are those of the median time; `deviation` is the standard deviation of the tokens per second, None of one
    run. Decode is compared with the memory's bandwidth (bytes it has to read and write, counted), prefill with the
    product's rate (operations counted). What was faster than that, as out of a cache, is the limit itself.
    """

    test: str
    tokens: int
    depth: int
    repetitions: int
    tokens_per_second: float
    deviation: float | None
    gb_per_second: float | None = None
    gflop_per_second: float | None = None
    percent_of_ceiling: float | None
    resident_bytes: int | None


class Run(NamedTuple):
    """One run of a test, and the limits measured just before it."""

    seconds: float
    ceilings: Ceilings


Runs = dict[tuple[str, int], list[Run]]


class Report(BaseModel):
    """All of a run; the JSON form of `bench`. `complete` is false when it was interrupted."""

    schema_version: int = SCHEMA_VERSION
    version: str = __version__
    model: str
    quantization: str
    state_dtype: str
    cpu: str
    cores: int
    threads: int | None
    gpu: str | None
    target: str
    ceilings: Ceilings
    measurements: list[Measurement]
    complete: bool


class Stream:
    """Random tokens of a fixed seed, the same ones again after some chunks: as many as are asked for, in little
    memory."""

    def __init__(self, engine: Engine) -> None:
        self._chunk = engine.chunk_size
        length = self._chunk * max(DIFFERENT_TOKENS // self._chunk, 1)
        self._tokens: list[int] = np.random.default_rng(0).integers(0, engine.vocab_size, length).tolist()

    def pieces(self, start: int, count: int) -> Iterator[list[int]]:
        """The `count` tokens from position `start` on, cut where chunks end."""
        end = start + count
        while start < end:
            stop = min(start - start % self._chunk + self._chunk, end)
            place = start % len(self._tokens)
            yield self._tokens[place : place + stop - start]
            start = stop


def run(
    engine: Engine,
    model: str,
    prompt_tokens: int,
    decode_tokens: int,
    depths: Iterable[int] = (0,),
    repetitions: int = 5,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measure prefill of `prompt_tokens` and decode of `decode_tokens` after each of `depths` tokens.

    Decode times whole steps without sampling. One warm-up run of each is not counted. No stream of the engine is
    disturbed. A Ctrl-C ends it with what was measured so far, if anything was. Raises `LogitsError` where logits are no
    numbers.
    """
    progress("the machine's limits")
    metadata, player = engine.metadata, engine.player
    limits = Machine() if player.on_host else Device(player)
    counts = {test: n for test, n in (("prefill", prompt_tokens), ("decode", decode_tokens)) if n}
    runs: Runs = {}
    complete = True
    try:
        _measure(engine, limits, counts, sorted(set(depths)), repetitions, runs, progress)
    except KeyboardInterrupt:
        complete = False
        if not runs:
            raise
    ceilings = best([run.ceilings for several in runs.values() for run in several])
    if not multiplies_bytes(metadata):
        ceilings.byte_matmul_gop_per_second = None
    return Report(
        model=model,
        quantization=metadata.quantization,
        state_dtype=metadata.state_dtype,
        cpu=host.cpu_name(),
        cores=host.usable_cores(),
        threads=(player.threads or default_threads()) if player.on_host else None,
        gpu=None if player.on_host else player.device_name(),
        target=metadata.target.mcpu,
        ceilings=ceilings,
        measurements=[
            summarize(metadata, test, counts[test], depth, [Run(run.seconds, ceilings) for run in several])
            for (test, depth), several in runs.items()
        ],
        complete=complete,
    )


def _measure(
    engine: Engine,
    limits: Machine | Device,
    counts: dict[str, int],
    depths: Sequence[int],
    repetitions: int,
    runs: Runs,
    progress: Callable[[str], None],
) -> None:
    """Add to `runs`. The state at a depth is made once, from that of the one before."""
    stream = Stream(engine)
    with slots_of(engine).lease() as slot:
        state = engine.save(slot)
        for depth in depths:
            engine.load(slot, state)
            for piece in stream.pieces(state.position, depth - state.position):
                engine.extend(slot, piece)
                progress(f"at {depth:,}: {engine.positions[slot]:,} tokens in")
            state = engine.save(slot)
            for repetition in range(repetitions + 1):
                for test, count in counts.items():
                    progress(f"{test} at {depth:,}, run {repetition} of {repetitions}")
                    engine.load(slot, state)
                    ceilings = limits.measure()
                    seconds = time_test(engine, test, stream.pieces(depth, count), slot)
                    check_logits(engine.logits(slot)[None], engine.positions[slot])
                    # The first one warms up.
                    if repetition:
                        runs.setdefault((test, depth), []).append(Run(seconds, ceilings))


def multiplies_bytes(metadata: Metadata) -> bool:
    """Whether a CPU's prefill multiplies bytes: quantized weights."""
    return any(p.layout is not None for p in metadata.parameters)


def summarize(metadata: Metadata, test: str, count: int, depth: int, runs: Sequence[Run]) -> Measurement:
    """Runs of one test of the model of `metadata` as a measurement."""
    if test == "prefill":
        return measurement(test, count, depth, prefill_flop(metadata, depth, count), runs, multiplies_bytes(metadata))
    return measurement(test, count, depth, decode_bytes(metadata, depth, tokens=count), runs)


def measurement(
    test: str, count: int, depth: int, work: int, runs: Sequence[Run], of_bytes: bool = False
) -> Measurement:
    """Runs of one test, each of `work` operations (prefill: `of_bytes` or in fp32) or bytes (decode), as a measurement:
    compared with the best of the limits that were measured before them."""
    seconds, ceilings = statistics.median(run.seconds for run in runs), best([run.ceilings for run in runs])
    speeds = [count / run.seconds for run in runs]
    rate, fastest = work / 1e9 / seconds, work / 1e9 / min(run.seconds for run in runs)
    if test == "decode":
        limit: float | None = ceilings.memory_gb_per_second
    else:
        limit = ceilings.byte_matmul_gop_per_second if of_bytes else ceilings.matmul_gflop_per_second
    return Measurement(
        test=test,
        tokens=count,
        depth=depth,
        repetitions=len(runs),
        tokens_per_second=count / seconds,
        deviation=statistics.stdev(speeds) if len(speeds) > 1 else None,
        gb_per_second=rate if test == "decode" else None,
        gflop_per_second=rate if test == "prefill" else None,
        percent_of_ceiling=None if limit is None else 100 * rate / max(limit, fastest),
        resident_bytes=host.resident_bytes(),
    )


def time_test(engine: Engine, test: str, pieces: Iterable[Sequence[int]], slot: int = 0) -> float:
    """Seconds that `engine` takes for a test with the tokens of all `pieces`; decode takes only their number."""
    engine.synchronize()
    begun = time.perf_counter()
    for piece in pieces:
        if test == "prefill":
            engine.extend(slot, piece)
        else:
            for _ in piece:
                engine.decode([slot])
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
    of_bytes = c.byte_matmul_gop_per_second
    derived = "" if of_bytes is None else f", bytes {of_bytes:.0f} GOP/s (derived from that)"
    return (
        f"{report.model} {report.quantization}, {report.cpu}, {report.threads} threads on {report.cores} cores"
        f" ({report.target}): reads {c.memory_gb_per_second:.1f} GB/s,"
        f" multiplies {c.matmul_gflop_per_second:.0f} GFLOP/s{derived}"
    )


def to_markdown(report: Report) -> str:
    """The report as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * 1 + " ---: |" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    return summary(report) + "\n\n" + "\n".join(lines) + "\n"


def to_json(report: Report) -> str:
    """The report as JSON, all of it."""
    return report.model_dump_json(indent=2) + "\n"


def to_csv(report: Report) -> str:
    """The report as CSV, numbers as programs read them: what a measurement lacks is empty, and every row says of what
    model and machine it is."""
    common = report.model_dump(include={"model", "quantization", "state_dtype", "cpu", "gpu", "threads", "version"})
    text = io.StringIO()
    table = [{**m.model_dump(), **common} for m in report.measurements]
    writer = csv.DictWriter(text, [*Measurement.model_fields, *common], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in table)
    return text.getvalue()
