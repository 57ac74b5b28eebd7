"""Models to test with: golden vectors, small configs, random parameters."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from gecko_mlc.config import GeckoConfig, validate_config
from gecko_mlc.convert.derived import CEMA_PARAMETERS, cema_coefficients, cema_name, rope_tables
from gecko_mlc.formats.library import Parameter
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.reference.init_weights import initial_value

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden(NamedTuple):
    """One file of golden vectors."""

    name: str
    config: GeckoConfig
    parameters: dict[str, np.ndarray]
    tokens: list[int]
    logits: np.ndarray
    tensors: dict[str, np.ndarray]


@functools.cache
def load_golden(name: str) -> Golden:
    """The vectors of tests/golden/<name>.safetensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", "np") as file:
        config = validate_config(json.loads(file.metadata()["meta"])["config"], name)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    parameters = {k[3:]: v for k, v in tensors.items() if k.startswith("sd.")}
    return Golden(name, config, parameters, tensors["tokens"][0].tolist(), tensors["logits"][0], tensors)


def small_config(**changes: Any) -> GeckoConfig:
    """A config small enough to test with, odd enough to find faults."""
    fields: dict[str, Any] = {
        "num_layers": 2,
        "model_dim": 24,
        "z_dim": 16,
        "value_dim": 32,
        "num_heads": 2,
        "ffn_hidden_dim": 40,
        "cema_ndim": 4,
        "chunk_size": 8,
        "timenorm_num_groups": 6,
        "vocab_size": 53,
    }
    return GeckoConfig(**{**fields, **changes})


def random_parameters(config: GeckoConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters with nothing at zero, so that no term of the model can hide."""
    rng = np.random.default_rng(seed)
    return {
        p.name: initial_value(config, p, seed)
        + rng.normal(0, 0.1, p.shape).astype(np.float32) * (1 if not p.matrix else 0.3)
        for p in config.parameters()
    }


def derived(config: GeckoConfig, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The constants that conversion derives from the config and the EMA's parameters."""
    result = dict(zip(("rope.cos", "rope.sin"), rope_tables(config), strict=True))
    for i in range(config.num_layers):
        leaves = (parameters[f"layers.{i}.mega.cema.{leaf}"] for leaf in CEMA_PARAMETERS)
        result[cema_name(i)] = cema_coefficients(*leaves)
    return result


def with_derived(config: GeckoConfig, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters and the constants derived from them."""
    return parameters | derived(config, parameters)


def in_memory(spec: Parameter, value: np.ndarray) -> np.ndarray:
    """A parameter as the functions take it, of its value."""
    if spec.layout is None:
        return np.ascontiguousarray(value, NUMPY_DTYPES[spec.dtype])
    return spec.layout.pack(*spec.layout.quantization.quantize(value), spec.inputs)


def random_split(rng: np.random.Generator, total: int, longest: int) -> list[int]:
    """Lengths that add up to `total`, runs of single tokens among them."""
    lengths: list[int] = []
    while total > 0:
        length = 1 if rng.random() < 0.4 else int(rng.integers(1, longest + 1))
        lengths.append(min(length, total))
        total -= lengths[-1]
    return lengths
