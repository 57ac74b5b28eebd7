"""The measuring core of all benchmarks: speeds, and what part of the machine they use.

The machine's own limits are measured in the same run, beside what is compared with them.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel

from gecko_mlc.abi import Metadata
from gecko_mlc.runtime import machine
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.parameters import NUMPY_DTYPES

SCHEMA_VERSION = 1


class Ceilings(BaseModel):
    """What this machine can do: reading memory, and an fp32 matrix product, with all usable cores."""

    read_gb_per_second: float
    matmul_gflop_per_second: float


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
    percent_of_ceiling: float
    resident_bytes: int | None


class Report(BaseModel):
    """All of a run; the JSON form of `bench`."""

    schema_version: int = SCHEMA_VERSION
    model: str
    quantization: str
    cpu: str
    cores: int
    target: str
    ceilings: Ceilings
    measurements: list[Measurement]


def measure_ceilings(repetitions: int = 3) -> Ceilings:
    """The best of some repetitions, of reading 1 GiB and of a product of 1024³ per core."""
    cores = machine.usable_cores()
    data = np.ones(2**27, np.uint64)
    parts = np.array_split(data, cores * 8)
    matrices = [np.ones((1024, 1024), np.float32) for _ in range(2)]
    read, product = math.inf, math.inf
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repetitions + 1):
            begun = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            read = min(read, time.perf_counter() - begun)
    for _ in range(repetitions + 1):
        begun = time.perf_counter()
        np.matmul(*matrices)
        product = min(product, time.perf_counter() - begun)
    return Ceilings(
        read_gb_per_second=data.nbytes / read / 1e9,
        matmul_gflop_per_second=2 * 1024**3 / product / 1e9,
    )


def best_of(*measured: Ceilings) -> Ceilings:
    """The best of several measurements: a machine shared with others has slow moments."""
    return Ceilings(
        read_gb_per_second=max(c.read_gb_per_second for c in measured),
        matmul_gflop_per_second=max(c.matmul_gflop_per_second for c in measured),
    )


def decode_bytes(metadata: Metadata, position: int) -> int:
    """Bytes one decoded token at `position` has to move: weights and window once, states in and out."""
    c = metadata.config
    untied = not c["share_emb"]
    weights = sum(
        math.prod(p.shape) * NUMPY_DTYPES[p.dtype].itemsize
        for p in metadata.parameters
        if not p.name.startswith("rope.") and not (untied and p.name == "embed.weight")
    )
    chunk, offset = divmod(position, c["chunk_size"])
    keys = offset + 1 + (c["chunk_size"] if chunk else 0)
    cache = next(s for s in metadata.state if s.name == "layers.0.keys")
    window = keys * (c["z_dim"] + c["value_dim"]) * NUMPY_DTYPES[cache.dtype].itemsize
    memory = 4 * c["z_dim"] * (c["value_dim"] // c["num_heads"])
    ema = 2 * 8 * c["model_dim"] * c["cema_ndim"]
    return int(weights + c["num_layers"] * (window + memory + ema))


def prefill_flop(metadata: Metadata, start: int, count: int) -> int:
    """Operations of the products and attention of `count` tokens from `start` on; the head once."""
    c = metadata.config
    matrices = sum(
        math.prod(p.shape)
        for p in metadata.parameters
        if p.name.endswith(".weight") and p.name.startswith("layers.") and len(p.shape) == 2
    )
    z, e, size = c["z_dim"], c["value_dim"], c["chunk_size"]
    total = 2 * matrices * count + 2 * c["model_dim"] * c["vocab_size"]
    for position in range(start, start + count):
        chunk, offset = divmod(position, size)
        keys = offset + 1 + (size if chunk else 0)
        total += 2 * c["num_layers"] * (keys * (z + e) + z * (e // c["num_heads"]))
    return int(total)


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
    before = measure_ceilings()
    rng = np.random.default_rng(0)
    stream = rng.integers(0, engine.vocab_size, max(depths) + prompt_tokens + decode_tokens + 1).tolist()
    seconds: dict[tuple[str, int], list[float]] = {}
    resident: dict[tuple[str, int], int | None] = {}
    for repetition in range(repetitions + 1):
        for depth in depths:
            for test, count in (("prefill", prompt_tokens), ("decode", decode_tokens)):
                if not count:
                    continue
                progress(f"{test} at {depth:,}, run {repetition} of {repetitions}")
                engine.reset(0)
                if depth:
                    engine.extend(0, stream[:depth])
                spent = _time(engine, test, stream[depth : depth + count])
                resident[test, depth] = machine.resident_bytes()
                if repetition:
                    seconds.setdefault((test, depth), []).append(spent)
    progress("the machine's limits again")
    ceilings = best_of(before, measure_ceilings())
    measurements = []
    for (test, depth), times in seconds.items():
        count = prompt_tokens if test == "prefill" else decode_tokens
        speeds = [count / t for t in times]
        mean = statistics.fmean(times)
        gflop = prefill_flop(metadata, depth, count) / mean / 1e9 if test == "prefill" else None
        moved = sum(decode_bytes(metadata, depth + i) for i in range(count))
        gb = moved / mean / 1e9 if test == "decode" else None
        percent = 100 * (
            gflop / ceilings.matmul_gflop_per_second if gflop else (gb or 0.0) / ceilings.read_gb_per_second
        )
        measurements.append(
            Measurement(
                test=test,
                tokens=count,
                depth=depth,
                repetitions=repetitions,
                tokens_per_second=statistics.fmean(speeds),
                deviation=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
                gb_per_second=gb,
                gflop_per_second=gflop,
                percent_of_ceiling=percent,
                resident_bytes=resident[test, depth],
            )
        )
    return Report(
        model=model,
        quantization=metadata.quantization,
        cpu=machine.cpu_name(),
        cores=machine.usable_cores(),
        target=metadata.target.mcpu,
        ceilings=ceilings,
        measurements=measurements,
    )


def _time(engine: Engine, test: str, tokens: list[int]) -> float:
    begun = time.perf_counter()
    if test == "prefill":
        engine.extend(0, tokens)
    else:
        for _ in tokens:
            engine.decode([0])
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
    return (
        f"{report.model} {report.quantization}, {report.cpu}, {report.cores} cores ({report.target}):"
        f" reads {c.read_gb_per_second:.1f} GB/s, multiplies {c.matmul_gflop_per_second:.0f} GFLOP/s"
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
