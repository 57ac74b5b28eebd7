"""PyTorch's Gecko on the same GPU, with the same weights, at the same position as ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from cuda_speed import NEAR, Limits, speed
from support.gpu.models import random_parameters, reference_model

from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.library import Library
from peers.pytorch_compiled import CompiledStep
from peers.pytorch_eager import Step

WARM_UP = 4


def eager(library: Library, config: GeckoConfig, limits: Limits) -> dict[str, float]:
    """Greedy decoding in bf16, a few tokens from the middle of the chunk that our decoding is averaged over."""
    parameters = {name: value.bfloat16() for name, value in random_parameters(config, "bfloat16").items()}
    step = Step(reference_model(config, parameters), NEAR * config.chunk_size + config.chunk_size // 2)
    token = 1

    def decode() -> None:
        nonlocal token
        token = int(step(token).argmax())

    return speed(library.metadata, NEAR, _seconds(decode, 32), limits)


def compiled(library: Library, config: GeckoConfig, limits: Limits) -> dict[str, float]:
    """The same compiled, with matrices and caches in bf16. Its time is the same at every position: it reads all of
    the window, and masks."""
    begun = time.perf_counter()
    step = CompiledStep(config, random_parameters(config, "bfloat16"), _compile)
    replay = _capture(step)
    spent = time.perf_counter() - begun
    step.position.copy_(torch.tensor([NEAR, 0]))
    seconds = _seconds(replay, min(256, config.chunk_size - WARM_UP))
    return {**speed(library.metadata, NEAR, seconds, limits), "compile_seconds": spent}


def _compile(function: Any) -> Any:
    # With coordinate descent products of one row become sums, which reach more of the memory's bandwidth.
    return torch.compile(function, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")


def _capture(step: CompiledStep) -> Callable[[], None]:
    """The whole step as one CUDA graph, after it was compiled and tuned."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Of one run, after some that warm up."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times
