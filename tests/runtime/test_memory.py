"""Too little memory: one error with the bytes that are needed and free, ahead where that is clear."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.memory import MemoryShortage, is_shortage
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.memory import told_of_shortage

NEEDS = {"the weights": 14_771_634_176, "the state": 1_234}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ImportError("numpy.so: failed to map segment from shared object"),
        GeckoError("CUDA: out of memory (error 2)"),
    ],
)
def test_shortage_has_many_names(error: Exception) -> None:
    with pytest.raises(MemoryShortage, match="14,771,634,176 bytes for the weights"), told_of_shortage(NEEDS, None):
        raise error


def test_numpy_s_error_is_one() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert is_shortage(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(2, "No such file"), GeckoError("the prompt is empty")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, told_of_shortage(NEEDS, None):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("free", "refused"),
    [(None, False), (1 << 40, False), (14_771_635_410, False), (14_700_000_000, False), (8_000_000_000, True)],
)
def test_only_a_clear_shortage_is_refused_ahead(free: int | None, refused: bool) -> None:
    """What is free is an estimate."""
    begun = False
    try:
        with told_of_shortage(NEEDS, free):
            begun = True
    except MemoryShortage as error:
        assert str(error) == (
            "not enough memory: needed are 14,771,634,176 bytes for the weights, 1,234 bytes for the state;"
            " 8,000,000,000 bytes are free;"
            " a smaller quantization or state dtype, fewer slots or shorter texts take less"
        )
    assert begun is not refused


def test_an_engine_tells_what_a_call_and_what_its_state_needs(
    engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    one = engine(config, random_parameters(config))
    workspace = max(one.metadata.workspace_bytes.values())

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(one.player, "play", fail)
        patch.setattr(one.player, "free_memory", lambda: 7)
        with pytest.raises(MemoryShortage, match=f"needed are {workspace:,} bytes for the workspace; 7 bytes are free"):
            one.extend(0, [1, 2, 3])
        with pytest.raises(MemoryShortage, match=f"needed are {2 * 3 * one.num_outputs * 4:,} bytes for the logits"):
            one.extend_logits(0, [1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(type(one.player), "free_memory", lambda self: 7)
        with pytest.raises(MemoryShortage, match=f"needed are {one.state_bytes():,} bytes for the state; 7 bytes"):
            engine(config, random_parameters(config))
    one.extend(0, [1, 2, 3])


LIMITED = """
import resource, sys
from gecko_mlc.api import GeckoError, load_model
from gecko_mlc.runtime.devices.memory import free_memory
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[1]), resource.RLIM_INFINITY))
assert free_memory() <= int(sys.argv[1])
try:
    load_model("gecko-demo")
except GeckoError as error:
    print(error)
"""


@pytest.mark.parametrize("megabytes", [8, 60, 120])
def test_a_model_that_does_not_fit_says_so(megabytes: int, home: Path) -> None:
    """Whether it is found ahead, or by what cannot be loaded or begun."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(megabytes << 20)],
        env={**os.environ, "GECKO_MLC_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("not enough memory: needed are 30,794,752 bytes for the weights")
    assert " bytes are free; a smaller quantization" in done.stdout
