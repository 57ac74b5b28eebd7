"""How fast is it on the GPU? The GPU's limits, prefill, decode, the time between tokens, each kernel."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from cuda_costs import Cost, decode_costs, kernel_name, prefill_costs
from torch.profiler import ProfilerActivity

from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.scheduler import Stream
from gecko_mlc.runtime.measure import bench
from gecko_mlc.runtime.state.slots import slots_of
from gecko_mlc.runtime.text.tokenizer import Tokenizer

Limits = dict[str, float]
# Chunks that decode is averaged over: one past the third, and the one at a million tokens (of the 7B).
NEAR, FAR = 4, 512


def ceilings() -> Limits:
    """Bytes read and written by a copy of 4 GiB, GB/s; a bf16 product of 8192³ through cuBLAS, TFLOP/s."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    destination = torch.empty_like(source)
    copy = milliseconds(lambda: destination.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = milliseconds(lambda: a @ b)
    return {"copy_gb_per_second": 2 * 2**32 / copy / 1e6, "bf16_tflop_per_second": 2 * 8192**3 / product / 1e9}


def milliseconds(run: Callable[[], Any], repetitions: int = 20) -> float:
    """The median of a GPU's work, after two that warm up."""
    times = []
    for _ in range(repetitions + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def speed(metadata: Any, chunk: int, seconds_per_token: float, limits: Limits) -> dict[str, float]:
    """Tokens and bytes a second of decoding a whole chunk, bytes counted for each of its positions."""
    size = metadata.config["chunk_size"]
    # Within a chunk they grow by the same amount from token to token.
    first, last = (bench.decode_bytes(metadata, chunk * size + offset) for offset in (0, size - 1))
    rate = (first + last) / 2 / seconds_per_token / 1e9
    return {
        "position": chunk * size,
        "tokens_per_second": 1 / seconds_per_token,
        "gb_per_second": rate,
        "percent_of_copy": 100 * rate / limits["copy_gb_per_second"],
    }


def prefill(engine: Engine, limits: Limits) -> list[dict[str, float]]:
    """Prompts of 2048 and of 32,768 tokens, from an empty state."""
    rows = []
    for count, repetitions in ((2048, 5), (32_768, 2)):
        tokens = np.random.default_rng(0).integers(0, engine.vocab_size, count).tolist()
        seconds = []
        for _ in range(repetitions + 1):
            engine.reset(0)
            engine.synchronize()
            begun = time.perf_counter()
            engine.extend(0, tokens)
            engine.synchronize()
            seconds.append(time.perf_counter() - begun)
        spent = statistics.median(seconds[1:])
        rate = bench.prefill_flop(engine.metadata, 0, count) / spent / 1e12
        rows.append(
            {
                "tokens": count,
                "tokens_per_second": count / spent,
                "tflop_per_second": rate,
                "percent_of_cublas": 100 * rate / limits["bf16_tflop_per_second"],
            }
        )
    return rows


def burst(engine: Engine, slots: Sequence[int], count: int) -> None:
    """Consume the current token of each slot and draw the next one, `count` times, which the host does not wait for."""
    for _ in range(count):
        engine.step(slots)


def decode(engine: Engine, limits: Limits) -> dict[str, Any]:
    """The mean over two whole chunks, and the memory that the GPU has left after each."""
    size = engine.chunk_size
    engine.reset(0)
    engine.extend(0, np.random.default_rng(1).integers(0, engine.vocab_size, NEAR * size).tolist())
    rows, free = [], []
    for chunk in (NEAR, FAR):
        move_to(engine, chunk)
        burst(engine, [0], 8)
        move_to(engine, chunk)
        engine.synchronize()
        begun = time.perf_counter()
        burst(engine, [0], size)
        engine.synchronize()
        rows.append(speed(engine.metadata, chunk, (time.perf_counter() - begun) / size, limits))
        free.append(torch.cuda.mem_get_info()[0])
    return {
        "chunks": rows,
        "far_over_near": rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"],
        "bytes_grown": free[0] - free[1],
    }


def between_tokens(engine: Engine) -> dict[str, float]:
    """Milliseconds from token to token, each waited for, across three chunk boundaries and two chunks between them."""
    size, margin = engine.chunk_size, min(64, engine.chunk_size // 2)
    move_to(engine, NEAR, size - margin)
    burst(engine, [0], 8)
    engine.token(0)
    move_to(engine, NEAR, size - margin)
    times = []
    last = time.perf_counter()
    for _ in range(2 * size + 2 * margin):
        burst(engine, [0], 1)
        engine.token(0)
        now = time.perf_counter()
        times.append(1e3 * (now - last))
        last = now
    times.sort()
    median, p99 = statistics.median(times), times[math.ceil(0.99 * len(times)) - 1]
    return {"median": median, "p99": p99, "largest": times[-1], "p99_over_median": p99 / median}


def generate(engine: Engine) -> dict[str, float]:
    """A prompt and then an answer of a chunk each through the generation loop, as a user gets them, beside the answer's
    steps alone; tokens a second."""
    size = engine.chunk_size
    options = GenerationOptions(sampling=Sampling(temperature=0.0), max_tokens=size - 1)
    prompt = np.random.default_rng(3).integers(0, engine.vocab_size, size).tolist()
    result: dict[str, float] = {}
    # The first one warms up.
    for _ in range(2):
        loop = Generation(Stream(slots_of(engine).lease(0), _tokenizer(), prompt, options))
        "".join(loop)
        result["prompt_tokens_per_second"] = size / loop.prefill_seconds
        result["tokens_per_second"] = len(loop.tokens) / loop.decode_seconds
        move_to(engine, 1)
        engine.synchronize()
        begun = time.perf_counter()
        burst(engine, [0], size - 2)
        engine.synchronize()
        result["steps_alone_per_second"] = (size - 2) / (time.perf_counter() - begun)
    return {**result, "of_steps_alone": result["tokens_per_second"] / result["steps_alone_per_second"]}


def _tokenizer() -> Tokenizer:
    """The demo's: ids that it has not are no text, at about the same price."""
    with resources.as_file(resources.files("gecko_mlc.demo")) as folder:
        return Tokenizer(folder)


def batches(engine: Engine, counts: Sequence[int], limits: Limits, steps: int = 128) -> list[dict[str, Any]]:
    """Decoding several sequences together, `steps` tokens each around the middle of a chunk; what takes the time:
    reading the weights, the keys, values and memory of all sequences, or operations."""
    size, metadata = engine.chunk_size, engine.metadata
    steps, warm_up = min(steps, size // 4), min(8, size // 8)
    middle = NEAR * size + size // 2
    engine.reset(0)
    engine.extend(0, np.random.default_rng(1).integers(0, engine.vocab_size, NEAR * size).tolist())
    for slot in range(1, max(counts)):
        engine.copy(0, slot)
    rows = []
    for count in counts:
        slots = range(count)
        for slot in slots:
            move_to(engine, NEAR, size // 2 - steps // 2 - warm_up, slot)
        burst(engine, slots, warm_up)
        engine.synchronize()
        begun = time.perf_counter()
        burst(engine, slots, steps)
        engine.synchronize()
        seconds = (time.perf_counter() - begun) / steps
        weights = bench.decode_bytes(metadata, middle, 0)
        moved = bench.decode_bytes(metadata, middle, count)
        operations = count * sum(cost.flop for cost in decode_costs(metadata, middle).values())
        memory = 100 * moved / seconds / 1e9 / limits["copy_gb_per_second"]
        arithmetic = 100 * operations / seconds / 1e12 / limits["bf16_tflop_per_second"]
        rows.append(
            {
                "sequences": count,
                "tokens_per_second": count / seconds,
                "gb_per_second": moved / seconds / 1e9,
                "percent_of_copy": memory,
                "percent_of_cublas": arithmetic,
                "percent_of_bytes_weights": 100 * weights / moved,
            }
        )
    return rows


def move_to(engine: Engine, chunk: int, offset: int = 0, slot: int = 0) -> None:
    """The state as it is, at another position: what a token costs depends on nothing else."""
    engine.write("position", slot, np.array([chunk, offset], np.int32))
    engine.positions[slot] = chunk * engine.chunk_size + offset


def profile(engine: Engine, limits: Limits) -> dict[str, list[dict[str, Any]]]:
    """The kernels of a decoded token in the middle of a chunk, and of the prefill of a chunk."""
    size, steps = engine.chunk_size, 8
    middle = NEAR * size + size // 2
    piece = min(size, engine.metadata.prefill_chunk_size)
    tokens = np.random.default_rng(2).integers(0, engine.vocab_size, piece).tolist()

    def decode_steps() -> None:
        move_to(engine, NEAR, size // 2)
        for _ in range(steps):
            engine.decode([0])

    def prefill_piece() -> None:
        move_to(engine, NEAR)
        engine.extend(0, tokens)

    return {
        "decode": _kernels(engine, decode_steps, steps, decode_costs(engine.metadata, middle), limits),
        "prefill": _kernels(engine, prefill_piece, 1, prefill_costs(engine.metadata, NEAR * size, piece), limits),
    }


def _kernels(
    engine: Engine, run: Callable[[], None], times: int, costs: dict[str, Cost], limits: Limits
) -> list[dict[str, Any]]:
    run()
    engine.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        engine.synchronize()
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return kernel_rows(events, times, costs, limits)


def kernel_rows(
    events: list[tuple[str, float, float]], times: int, costs: dict[str, Cost], limits: Limits
) -> list[dict[str, Any]]:
    """A row for each kernel, longest first, and one for all; events are (name, start, end) in microseconds.

    A kernel may start while its predecessor ends, and waits then: its time is what passes after that end, so the
    times add up. `times` is how often the function ran.
    """
    spent: dict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    first, last = min(start for _, start, _ in events), -math.inf
    for device_function, start, end in sorted(events, key=lambda event: event[1:]):
        name = kernel_name(device_function)
        spent[name] += max(0.0, end - max(start, last)) / times
        launches[name] += 1
        last = max(last, end)
    rows: list[dict[str, Any]] = []
    for name, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        row: dict[str, Any] = {"kernel": name, "launches": launches[name] / times, "microseconds": microseconds}
        if (cost := costs.get(name)) is not None and microseconds:
            row["gb_per_second"] = cost.bytes / microseconds / 1e3
            row["tflop_per_second"] = cost.flop / microseconds / 1e6
            row["percent_of_limit"] = 100 * max(
                row["gb_per_second"] / limits["copy_gb_per_second"],
                row["tflop_per_second"] / limits["bf16_tflop_per_second"],
            )
        rows.append(row)
    total = {"kernel": "all", "launches": len(events) / times, "microseconds": (last - first) / times}
    return [*rows, total]
