"""Fixtures: golden vectors, and engines compiled once a session."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

# The compiler, before anything loads TVM's runtime alone.
import tvm  # noqa: F401
from hypothesis import HealthCheck, settings
from support import no_skips
from support.models import Golden, in_memory, load_golden, with_derived

# Wide enough that no message is wrapped.
os.environ["COLUMNS"] = "200"

from gecko_mlc.cache import model_library
from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.models import model_folder
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library

# Tests that run in the background, and what they start, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `--hypothesis-profile=long` tries many more examples than every run does, others each time, and keeps what fails.
# The deadline is for what hangs, on a busy machine.
settings.register_profile("default", derandomize=True, max_examples=40, deadline=20_000, database=None)
settings.register_profile("long", max_examples=500, deadline=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("GECKO_MLC_NO_SKIP") == "1":
        config.pluginmanager.register(no_skips)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other workers from making `path` at the same time."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def home(shared: Path) -> Path:
    """A cache of prepared models and libraries in place of the user's, with the demo in it."""
    folder = shared / "home"
    with pytest.MonkeyPatch.context() as patch, locked(folder):
        patch.setenv("GECKO_MLC_HOME", str(folder))
        model_library(model_folder("gecko-demo"), "auto")
    return folder


@pytest.fixture(scope="session", params=["public_a", "public_b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each file of golden vectors."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def compiled(shared: Path) -> Callable[..., Path]:
    """Compile a config for this machine, once: (config, quantization, slots, state dtype) → library."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target

    def build(config: GeckoConfig, scheme: str = "q0f32", slots: int = 1, state: str | None = None) -> Path:
        key = json.dumps([config.model_dump(), scheme, slots, state])
        path = shared / f"{hashlib.sha256(key.encode()).hexdigest()}.so"
        with locked(path):
            if not path.exists():
                compile_library(config, quantization(scheme, state), compile_target("cpu"), path, slots)
        return path

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
