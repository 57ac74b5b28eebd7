"""Fixtures: golden vectors, and engines compiled once a session."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

# The compiler, before anything loads TVM's runtime alone.
import tvm
from safetensors import safe_open

# Wide enough that no message is wrapped.
os.environ["COLUMNS"] = "200"

from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.parameters import NUMPY_DTYPES

from gecko_mlc.abi import Parameter
from gecko_mlc.config import GeckoConfig, validate_config
from gecko_mlc.derived import CEMA_PARAMETERS, cema_coefficients, cema_name, rope_tables
from gecko_mlc.initialize import initial_value
from gecko_mlc.quantization import quantization

# Tests that run in the background, and what they start, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prepared models and libraries, in place of the user's."""
    return tmp_path_factory.mktemp("home")


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


@pytest.fixture(scope="session", params=["public_a", "public_b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each file of golden vectors."""
    return load_golden(request.param)


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


def with_derived(config: GeckoConfig, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters and the constants that conversion derives from them."""
    result = dict(parameters)
    result["rope.cos"], result["rope.sin"] = rope_tables(config)
    for i in range(config.num_layers):
        result[cema_name(i)] = cema_coefficients(
            *(parameters[f"layers.{i}.mega.cema.{leaf}"] for leaf in CEMA_PARAMETERS)
        )
    return result


def in_memory(spec: Parameter, value: np.ndarray) -> np.ndarray:
    """A parameter as the functions take it, of its value."""
    if spec.layout is None:
        return value.astype(NUMPY_DTYPES[spec.dtype])
    return spec.layout.pack(*spec.layout.quantization.quantize(value), spec.inputs)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a config for this machine, once: (config, quantization, slots, state dtype) → library."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target

    folder = tmp_path_factory.mktemp("libraries")
    done: dict[tuple[str, str, int, str | None], Path] = {}

    def build(config: GeckoConfig, scheme: str = "q0f32", slots: int = 1, state: str | None = None) -> Path:
        key = (config.model_dump_json(), scheme, slots, state)
        if key not in done:
            path = folder / f"{len(done)}.so"
            compile_library(config, quantization(scheme, state), compile_target("cpu"), path, slots)
            done[key] = path
        return done[key]

    return build


@pytest.fixture(scope="session")
def engine(compiled: Callable[..., Path]) -> Callable[..., Engine]:
    """An engine with given parameters: (config, parameters, quantization, slots, state dtype)."""

    def build(
        config: GeckoConfig,
        parameters: dict[str, np.ndarray],
        scheme: str = "q0f32",
        slots: int = 1,
        state: str | None = None,
    ) -> Engine:
        library = Library(compiled(config, scheme, slots, state))
        values = with_derived(config, parameters)
        tensors = [tvm.runtime.tensor(in_memory(spec, values[spec.name])) for spec in library.metadata.parameters]
        return Engine(library, tensors)

    return build


def random_split(rng: np.random.Generator, total: int, longest: int) -> list[int]:
    """Lengths that add up to `total`, runs of single tokens among them."""
    lengths: list[int] = []
    while total > 0:
        length = 1 if rng.random() < 0.4 else int(rng.integers(1, longest + 1))
        lengths.append(min(length, total))
        total -= lengths[-1]
    return lengths
