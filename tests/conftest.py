"""Fixtures: golden vectors, and engines compiled once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# The compiler, before anything loads TVM's runtime alone.
import tvm  # noqa: F401
from support import no_skips
from support.models import Golden, in_memory, load_golden, with_derived

# Wide enough that no message is wrapped.
os.environ["COLUMNS"] = "200"

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library

# Tests that run in the background, and what they start, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("GECKO_MLC_NO_SKIP") == "1":
        config.pluginmanager.register(no_skips)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prepared models and libraries, in place of the user's."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session", params=["public_a", "public_b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each file of golden vectors."""
    return load_golden(request.param)


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
        tensors = library.player.allocate(library.metadata.parameters)
        for spec, tensor in zip(library.metadata.parameters, tensors, strict=True):
            library.player.upload(tensor, in_memory(spec, values[spec.name]))
        return Engine(library, tensors)

    return build
