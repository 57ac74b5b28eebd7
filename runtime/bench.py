"""The measuring core of all benchmarks: speeds, and what part of the machine they use.

The machine's own limits are measured in the same run, just before what is compared with them.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from gecko_mlc.runtime import gpu, machine, tvm_runtime
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.parameters import NUMPY_DTYPES
from pydantic import BaseModel

from gecko_mlc.abi import Metadata

SCHEMA_VERSION = 1


class Ceilings(BaseModel):
    """What this machine can do: of a CPU reading memory, and an fp32 matrix product, with all usable cores; of a GPU
    bytes that a copy reads and writes."""

    memory_gb_per_second: float
    matmul_gflop_per_second: float | None


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


class Machine:
    """Measures what this machine can do, as often as asked: on one shared with others it changes."""

    def __init__(self) -> None:
        cores = machine.usable_cores()
        # Large enough that no cache holds it; a page was written for each that is read.
        self._parts = np.array_split(np.ones(2**26, np.uint64), cores * 4)
        self._bytes = sum(part.nbytes for part in self._parts)
        self._matrix = np.ones((1024, 1024), np.float32)
        self._pool = ThreadPoolExecutor(cores)
        self.measure()

    def measure(self) -> Ceilings:
        """The best of three, of reading 512 MiB with all cores and of a product of 1024³."""
        read, product = math.inf, math.inf
        # Idle threads of the engine, and then of BLAS, wait for more work, spinning, for hundredths of a second.
        time.sleep(0.1)
        for _ in range(3):
            begun = time.perf_counter()
            np.matmul(self._matrix, self._matrix)
            product = min(product, time.perf_counter() - begun)
        time.sleep(0.1)
        for _ in range(3):
            begun = time.perf_counter()
            list(self._pool.map(np.bitwise_or.reduce, self._parts))
            read = min(read, time.perf_counter() - begun)
        return Ceilings(
            memory_gb_per_second=self._bytes / read / 1e9,
            matmul_gflop_per_second=2 * 1024**3 / product / 1e9,
        )


class GPU:
    """Measures what this machine's GPU can do."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._arrays = [tvm_runtime.load().runtime.empty((2**28,), "float32", device) for _ in range(2)]
        self.measure()

    def measure(self) -> Ceilings:
        """The best of three, of copying 1 GiB five times."""
        best = math.inf
        source, destination = self._arrays
        for _ in range(3):
            self._device.sync()
            begun = time.perf_counter()
            for _ in range(5):
                source.copyto(destination)
            self._device.sync()
            best = min(best, (time.perf_counter() - begun) / 5)
        return Ceilings(memory_gb_per_second=2 * 2**30 / best / 1e9, matmul_gflop_per_second=None)


def median(measured: Sequence[Ceilings]) -> Ceilings:
    """The median of several measurements."""
    products = [c.matmul_gflop_per_second for c in measured if c.matmul_gflop_per_second is not None]
    return Ceilings(
        memory_gb_per_second=statistics.median(c.memory_gb_per_second for c in measured),
        matmul_gflop_per_second=statistics.median(products) if products else None,
    )


def decode_bytes(metadata: Metadata, position: int, sequences: int = 1) -> int:
    """Bytes that decoding a token of each of some sequences at `position` has to move (specification 6).

    Weights are read once for all. For each, the keys and values it sees and, from the third chunk on, the memory are
    read once, the EMA's state is read and written. What a row takes of the embedding, the rotary tables and
    activations is left out.
    """
    c = metadata.config
    untied = not c["share_emb"]
    weights = sum(
        math.prod(p.shape) * NUMPY_DTYPES[p.dtype].itemsize
        for p in metadata.parameters
        if not p.name.startswith("rope.") and not (untied and p.name == "embed.weight")
    )
    sizes = {s.name: NUMPY_DTYPES[s.dtype].itemsize for s in metadata.state}
    key_bytes, value_bytes = c["z_dim"] * sizes["layers.0.keys"], c["value_dim"] * sizes["layers.0.values"]
    scale_bytes = c["num_heads"] * sizes.get("layers.0.value_scales", 0)
    window = keys_seen(metadata, position) * (key_bytes + value_bytes + scale_bytes)
    # A GPU's build reads a copy in the caches' dtype.
    memory_size = sizes.get("layers.0.memory_read", sizes["layers.0.memory"])
    memory = _memory_elements(metadata) * memory_size if position >= 2 * c["chunk_size"] else 0
    ema = 2 * 8 * c["model_dim"] * c["cema_ndim"]
    return int(weights + sequences * c["num_layers"] * (window + memory + ema))


def prefill_flop(metadata: Metadata, start: int, count: int) -> int:
    """Operations of the products, attention and memory of `count` tokens from `start` on (specification 6).

    The head is counted once. Positions of the first chunk take nothing into the memory and those of the second
    find it empty, as it is when they are taken in.
    """
    c = metadata.config
    layers, size = c["num_layers"], c["chunk_size"]
    matrices = sum(
        p.elements
        for p in metadata.parameters
        if p.name.endswith(".weight") and p.name.startswith("layers.") and len(p.shape) == 2
    )
    outputs = next(s.shape[0] for s in metadata.state if s.name == "logits")
    total = 2 * matrices * count + 2 * c["model_dim"] * outputs
    product = 2 * layers * _memory_elements(metadata)
    for position in range(start, start + count):
        total += 2 * layers * keys_seen(metadata, position) * (c["z_dim"] + c["value_dim"])
        taken_in = _positions_taken_in(metadata, position)
        total += taken_in * product + (1 + taken_in) * product * (position >= 2 * size)
    return int(total)


def keys_seen(metadata: Metadata, position: int) -> int:
    """Positions that the attention of the token at `position` sees: its own, those before in its chunk, one chunk."""
    chunk, offset = divmod(position, metadata.config["chunk_size"])
    return int(offset + 1 + (metadata.config["chunk_size"] if chunk else 0))


def _memory_elements(metadata: Metadata) -> int:
    c = metadata.config
    return int(c["z_dim"] * (c["value_dim"] // c["num_heads"]))


def _positions_taken_in(metadata: Metadata, position: int) -> int:
    """Positions of the chunk before that the memory takes in with this token: one on a GPU, else all with the last."""
    chunk, offset = divmod(position, metadata.config["chunk_size"])
    size = int(metadata.config["chunk_size"])
    if chunk == 0:
        return 0
    return 1 if metadata.target.kind == "cuda" else size * (offset == size - 1)


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
    on_gpu = metadata.target.kind == "cuda"
    limits = GPU(engine.device) if on_gpu else Machine()
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
        cpu=machine.cpu_name(),
        cores=machine.usable_cores(),
        gpu=gpu.name() if on_gpu else None,
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
        resident_bytes=machine.resident_bytes(),
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
