"""Is it right on the GPU? Golden vectors, a large model against fp32 arithmetic, slots, a second load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from support.golden import feed
from support.gpu.models import Tensors, make_engine, on_device, reference_model
from support.models import GOLDEN, Golden, load_golden, random_split


def prepare_golden(arch: str | None, folder: Path) -> None:
    """Libraries for the configs of the golden vectors."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target
    from gecko_mlc.formats.quantization import quantization

    target = compile_target("cuda", architectures=arch)
    for file in sorted(GOLDEN.glob("*.safetensors")):
        config = load_golden(file.stem).config
        compile_library(config, quantization("q0f32"), target, folder / f"golden-{file.stem}.so", max_batch_size=2)


def _golden_engine(path: Path) -> tuple[Engine, Golden]:
    library, golden = Library(path), load_golden(path.stem.removeprefix("golden-"))
    device = library.metadata.target.kind
    return make_engine(library, {k: on_device(device, v) for k, v in golden.parameters.items()}), golden


def golden(folder: Path) -> dict[str, float]:
    """The largest difference from the golden logits (float64), over one call, single tokens and random splits."""
    result = {}
    for path in sorted(folder.glob("golden-*.so")):
        engine, golden = _golden_engine(path)
        count = len(golden.tokens)
        rng = np.random.default_rng(0)
        splits = [[count], [1] * count, *(random_split(rng, count, count // 4) for _ in range(20))]
        differences = [_difference(feed(engine, golden.tokens, split), golden.logits) for split in splits]
        result[path.stem] = max(differences)
    return result


def conversations(folder: Path) -> dict[str, float]:
    """Two slots in turn, and an engine loaded again while the first lives, against one stream alone: the largest
    difference of logits. (A captured graph replays the addresses it was captured with.)"""
    result = {}
    for path in sorted(folder.glob("golden-*.so")):
        engine, golden = _golden_engine(path)
        streams = (golden.tokens, golden.tokens[::-1])
        alone = []
        for stream in streams:
            engine.reset(0)
            alone.append(np.concatenate([engine.extend_logits(0, [token]) for token in stream]))
        again, _ = _golden_engine(path)
        worst = 0.0
        for candidate in (engine, again, engine):
            rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            for slot in range(2):
                candidate.reset(slot)
            for pair in zip(*streams, strict=True):
                for slot, token in enumerate(pair):
                    rows[slot].append(candidate.extend_logits(slot, [token]))
            worst = max(worst, *(_difference(np.concatenate(r), a) for r, a in zip(rows, alone, strict=True)))
        result[path.stem] = worst
    return result


def _difference(ours: np.ndarray, expected: np.ndarray) -> float:
    """The largest; NaN is no small one."""
    return float(np.nan_to_num(np.abs(ours - expected), nan=np.inf).max())


@torch.no_grad()
def logits(engine: Engine, config: GeckoConfig, parameters: Tensors, steps: int = 64) -> dict[str, float]:
    """Against the PyTorch reference in fp32 on the same rounded weights: two chunks and a part of a third by
    prefill, then `steps` tokens decoded, both fed the reference's greedy tokens.

    The relative error is ‖logits − expected‖ / ‖expected‖, the largest of a row. A greedy token counts as differing
    where the expected margin between the two best exceeds twice the row's largest error.
    """
    model = reference_model(config, {name: value.float() for name, value in parameters.items()})
    device = parameters["embed.weight"].device
    chunk = config.chunk_size
    prompt = np.random.default_rng(3).integers(0, engine.vocab_size, 2 * chunk + chunk // 10).tolist()
    errors: list[torch.Tensor] = []
    compared = differing = 0

    def compare(mine: np.ndarray, expected: torch.Tensor) -> None:
        nonlocal compared, differing
        difference = torch.from_numpy(mine).to(device) - expected
        errors.append(difference.norm(dim=-1) / expected.norm(dim=-1))
        best = expected.topk(2, dim=-1).values
        certain = best[:, 0] - best[:, 1] > 2 * difference.abs().amax(-1)
        same = torch.from_numpy(mine.argmax(-1)).to(device) == expected.argmax(-1)
        compared += int(certain.sum())
        differing += int((certain & ~same).sum())

    def worst() -> float:
        largest = float(torch.cat(errors).nan_to_num(torch.inf).max())
        errors.clear()
        return largest

    engine.reset(0)
    ours = engine.extend_logits(0, prompt)
    # Short pieces: the reference keeps powers of q for a whole piece, of every layer.
    state, piece = None, min(256, chunk)
    with device:
        for start in range(0, len(prompt), piece):
            expected, state = model(torch.tensor([prompt[start : start + piece]]), state)
            compare(ours[start : start + piece], expected[0])
        prefill_error = worst()
        token = int(expected[0, -1].argmax())
        for _ in range(steps):
            mine = engine.extend_logits(0, [token])
            expected, state = model(torch.tensor([[token]]), state)
            compare(mine, expected[0])
            token = int(expected[0, -1].argmax())
    return {
        "prefill_relative_error": prefill_error,
        "decode_relative_error": worst(),
        "greedy_compared": compared,
        "greedy_differing": differing,
    }
