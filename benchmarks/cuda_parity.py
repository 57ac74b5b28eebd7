"""Is it right on the GPU? Kernels, golden vectors, a large model against fp32 arithmetic, slots, a second load."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gecko_mlc.runtime import tvm_runtime
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from safetensors.numpy import load_file, save_file

from gecko_mlc.config import GeckoConfig, validate_config
from gecko_mlc.derived import CEMA_PARAMETERS, cema_coefficients, cema_name, rope_tables
from gecko_mlc.initialize import initial_value, matrix_deviation
from gecko_mlc.quantization import Quantization
from gecko_mlc.reference import Gecko

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def random_parameters(config: GeckoConfig, dtype: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Initial parameters on the GPU: matrices rounded to `dtype`, the rest and the derived constants fp32."""
    result = {}
    for parameter in config.parameters():
        if parameter.matrix:
            generator = torch.Generator("cuda").manual_seed(seed * 2**32 + zlib.crc32(parameter.name.encode()))
            value = torch.randn(parameter.shape, generator=generator, device="cuda")
            result[parameter.name] = (value * matrix_deviation(config, parameter)).to(TORCH_DTYPES[dtype])
        else:
            result[parameter.name] = torch.from_numpy(initial_value(config, parameter, seed)).cuda()
    return result


def with_derived(config: GeckoConfig, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters and the constants that conversion derives from them."""
    derived = dict(zip(("rope.cos", "rope.sin"), rope_tables(config), strict=True))
    for i in range(config.num_layers):
        values = (parameters[f"layers.{i}.mega.cema.{leaf}"].cpu().numpy() for leaf in CEMA_PARAMETERS)
        derived[cema_name(i)] = cema_coefficients(*values)
    return parameters | {name: torch.from_numpy(value).cuda() for name, value in derived.items()}


def make_engine(path: Path, parameters: dict[str, torch.Tensor]) -> Engine:
    """An engine on the GPU with parameters that lie there already."""
    library = Library(path)
    tvm = tvm_runtime.load()
    return Engine(library, [tvm.runtime.from_dlpack(parameters[spec.name]) for spec in library.metadata.parameters])


def random_engine(path: Path, config: GeckoConfig) -> Engine:
    """An engine with initial parameters of a fixed seed."""
    dtype = next(p.dtype for p in Library(path).metadata.parameters if p.name == "embed.weight")
    return make_engine(path, with_derived(config, random_parameters(config, dtype)))


def prepare_golden(vectors: Path, arch: str, folder: Path) -> None:
    """Libraries for the golden configs, and the vectors beside them."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target
    from safetensors import safe_open

    from gecko_mlc.quantization import quantization

    target = compile_target("cuda", architectures=arch)
    for file in sorted(vectors.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            config = validate_config(json.loads(opened.metadata()["meta"])["config"], file.name)
        compile_library(config, quantization("q0f32"), target, folder / f"golden-{file.stem}.so", max_batch_size=2)
        save_file(load_file(file), folder / f"golden-{file.stem}.safetensors", {"config": config.model_dump_json()})


def _golden_engine(library: Path) -> tuple[Engine, dict[str, np.ndarray]]:
    from safetensors import safe_open

    file = library.with_suffix(".safetensors")
    with safe_open(file, "np") as opened:
        config = GeckoConfig.model_validate_json(opened.metadata()["config"])
    tensors = load_file(file)
    parameters = {k[3:]: torch.from_numpy(v).cuda() for k, v in tensors.items() if k.startswith("sd.")}
    return make_engine(library, with_derived(config, parameters)), tensors


def golden(folder: Path) -> dict[str, float]:
    """The largest difference from the golden logits (float64), over one call, single tokens and random splits."""
    result = {}
    for library in sorted(folder.glob("golden-*.so")):
        engine, tensors = _golden_engine(library)
        tokens, expected = tensors["tokens"][0].tolist(), tensors["logits"][0]
        rng = np.random.default_rng(0)
        splits = [[len(tokens)], [1] * len(tokens)]
        splits += [np.diff([0, *np.sort(rng.integers(0, len(tokens), 9)), len(tokens)]).tolist() for _ in range(20)]
        worst = 0.0
        for split in splits:
            engine.reset(0)
            done, rows = 0, []
            for length in filter(None, split):
                rows.append(engine.extend_logits(0, tokens[done : done + length]))
                done += length
            worst = max(worst, float(np.abs(np.concatenate(rows) - expected).max()))
        result[library.stem] = worst
    return result


def conversations(folder: Path) -> dict[str, float]:
    """Two slots in turn, and an engine loaded again while the first lives, against one stream alone: the largest
    difference of logits. (A captured graph replays the addresses it was captured with.)"""
    result = {}
    for library in sorted(folder.glob("golden-*.so")):
        engine, tensors = _golden_engine(library)
        tokens = tensors["tokens"][0].tolist()
        streams = (tokens, tokens[::-1])
        alone = []
        for stream in streams:
            engine.reset(0)
            alone.append(np.concatenate([engine.extend_logits(0, [token]) for token in stream]))
        again, _ = _golden_engine(library)
        worst = 0.0
        for candidate in (engine, again, engine):
            candidate.reset(0)
            candidate.reset(1)
            rows: tuple[list[Any], list[Any]] = ([], [])
            for pair in zip(*streams, strict=True):
                for slot, token in enumerate(pair):
                    rows[slot].append(candidate.extend_logits(slot, [token]))
            worst = max(worst, *(float(np.abs(np.concatenate(r) - a).max()) for r, a in zip(rows, alone, strict=True)))
        result[library.stem] = worst
    return result


@torch.no_grad()
def logits(engine: Engine, config: GeckoConfig, scheme: Quantization, steps: int = 64) -> dict[str, Any]:
    """Against the PyTorch reference in fp32 on the same rounded weights: two chunks and a part of a third by
    prefill, then `steps` tokens decoded, both fed the reference's greedy tokens.

    The relative error is ‖logits − expected‖ / ‖expected‖. A greedy token counts as differing where the
    expected margin between the two best exceeds twice the row's largest error.
    """
    parameters = random_parameters(config, scheme.matrix_dtype)
    with torch.device("cuda"):
        model = Gecko(config)
    model.load_state_dict({name: value.float() for name, value in parameters.items()}, assign=True)
    prompt = np.random.default_rng(3).integers(0, engine.vocab_size, 2 * config.chunk_size + 200).tolist()
    state = None
    engine.reset(0)
    ours = engine.extend_logits(0, prompt)
    errors, norms, compared, differing = [], [], 0, 0

    def compare(mine: np.ndarray, expected: torch.Tensor) -> None:
        nonlocal compared, differing
        difference = torch.from_numpy(mine).cuda() - expected
        errors.append(difference.square().sum(-1).sqrt())
        norms.append(expected.square().sum(-1).sqrt())
        best = expected.topk(2, dim=-1).values
        certain = best[:, 0] - best[:, 1] > 2 * difference.abs().amax(-1)
        same = torch.from_numpy(mine.argmax(-1)).cuda() == expected.argmax(-1)
        compared += int(certain.sum())
        differing += int((certain & ~same).sum())

    # Short pieces: the reference keeps powers of q for a whole piece, of every layer.
    piece = min(256, config.chunk_size)
    with torch.device("cuda"):
        for start in range(0, len(prompt), piece):
            expected, state = model(torch.tensor([prompt[start : start + piece]]), state)
            compare(ours[start : start + piece], expected[0])
        prefill_error = float((torch.cat(errors) / torch.cat(norms)).max())
        errors.clear()
        norms.clear()
        token = int(expected[0, -1].argmax())
        for _ in range(steps):
            mine = engine.extend_logits(0, [token])
            expected, state = model(torch.tensor([[token]]), state)
            compare(mine, expected[0])
            token = int(expected[0, -1].argmax())
    return {
        "prefill_relative_error": prefill_error,
        "decode_relative_error": float((torch.cat(errors) / torch.cat(norms)).max()),
        "greedy_compared": compared,
        "greedy_differing": differing,
    }
