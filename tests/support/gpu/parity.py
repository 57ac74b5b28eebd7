"""Is it right on the GPU? Golden vectors, a large model against fp32 arithmetic, slots, a second load."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from cuda_quantize import TORCH_DTYPES, pack
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gecko_mlc.config import GeckoConfig, validate_config
from gecko_mlc.convert.derived import CEMA_PARAMETERS, cema_coefficients, cema_name, rope_tables
from gecko_mlc.reference.gecko import Gecko, RotaryEmbedding
from gecko_mlc.reference.init_weights import initial_value, matrix_deviation
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.players import tvm_runtime

Tensors = dict[str, torch.Tensor]


def random_parameters(config: GeckoConfig, dtype: str, device: str = "cuda") -> Tensors:
    """Initial parameters of a fixed seed, made on the device: matrices rounded to `dtype`, the rest fp32."""
    result = {}
    for parameter in config.parameters():
        if parameter.matrix:
            generator = torch.Generator(device).manual_seed(zlib.crc32(parameter.name.encode()))
            value = torch.randn(parameter.shape, generator=generator, device=device)
            result[parameter.name] = (value * matrix_deviation(config, parameter)).to(TORCH_DTYPES[dtype])
        else:
            result[parameter.name] = _on(device, initial_value(config, parameter, 0))
    return result


def _on(device: torch.device | str, array: np.ndarray) -> torch.Tensor:
    """A copy, in the layout and alignment that TVM demands."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, copy=True)


def with_derived(config: GeckoConfig, parameters: Tensors) -> Tensors:
    """The parameters and the constants that conversion derives from them."""
    derived = dict(zip(("rope.cos", "rope.sin"), rope_tables(config), strict=True))
    for i in range(config.num_layers):
        values = (parameters[f"layers.{i}.mega.cema.{leaf}"].cpu().numpy() for leaf in CEMA_PARAMETERS)
        derived[cema_name(i)] = cema_coefficients(*values)
    device = parameters["embed.weight"].device
    return parameters | {name: _on(device, value) for name, value in derived.items()}


def make_engine(library: Library, parameters: Tensors) -> Engine:
    """An engine over parameters that lie on its device already. What is quantized for it changes in `parameters`, to
    what the codes stand for."""
    packed = pack(parameters, library.metadata.parameters)
    tensors = with_derived(GeckoConfig(**library.metadata.config), parameters) | packed
    convert = tvm_runtime.load().runtime.from_dlpack
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Engine(library, [convert(tensors[spec.name]) for spec in library.metadata.parameters])


def reference_model(config: GeckoConfig, parameters: Tensors) -> Gecko:
    """The PyTorch reference over `parameters`, on their device."""
    with torch.device("meta"):
        model = Gecko(config)
    model.load_state_dict(parameters, assign=True)
    # Its frequencies are no parameter.
    with parameters["embed.weight"].device:
        model.rope = RotaryEmbedding(config)
    return model


def prepare_golden(vectors: Path, arch: str | None, folder: Path) -> None:
    """Libraries for the golden configs, and the vectors beside them."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target
    from gecko_mlc.formats.quantization import quantization

    target = compile_target("cuda", architectures=arch)
    for file in sorted(vectors.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            config = validate_config(json.loads(opened.metadata()["meta"])["config"], file.name)
        compile_library(config, quantization("q0f32"), target, folder / f"golden-{file.stem}.so", max_batch_size=2)
        needed = {k: v for k, v in load_file(file).items() if k in ("tokens", "logits") or k.startswith("sd.")}
        save_file(needed, folder / f"golden-{file.stem}.safetensors")


def _golden_engine(path: Path) -> tuple[Engine, dict[str, np.ndarray]]:
    library, tensors = Library(path), load_file(path.with_suffix(".safetensors"))
    device = library.metadata.target.kind
    parameters = {k[3:]: _on(device, v) for k, v in tensors.items() if k.startswith("sd.")}
    return make_engine(library, parameters), tensors


def golden(folder: Path) -> dict[str, float]:
    """The largest difference from the golden logits (float64), over one call, single tokens and random splits."""
    result = {}
    for path in sorted(folder.glob("golden-*.so")):
        engine, tensors = _golden_engine(path)
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
            worst = max(worst, _difference(np.concatenate(rows), expected))
        result[path.stem] = worst
    return result


def conversations(folder: Path) -> dict[str, float]:
    """Two slots in turn, and an engine loaded again while the first lives, against one stream alone: the largest
    difference of logits. (A captured graph replays the addresses it was captured with.)"""
    result = {}
    for path in sorted(folder.glob("golden-*.so")):
        engine, tensors = _golden_engine(path)
        tokens = tensors["tokens"][0].tolist()
        streams = (tokens, tokens[::-1])
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
