"""Tests that only a GPU can run, by `make test-gpu`: without one they fail, and are not skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gecko_mlc.runtime.devices import nvidia

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
# What is compiled where nothing was prepared: weights as they are, in codes, and values in codes, too.
PREPARE = ("gecko-demo", "--schemes", "q0bf16,q4f16_1+int8", "--parts", "kernels,golden,conversations,parity")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--prepared", type=Path, metavar="FOLDER", help="of `benchmarks/gpu.py --prepare`; by default made here"
    )


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """The GPU that all of these tests need."""
    if nvidia.usable() is None:
        pytest.fail("these tests need an NVIDIA GPU with a driver for CUDA 13: none here", pytrace=False)


@pytest.fixture(scope="session")
def prepared(gpu: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled kernels and libraries."""
    given: Path | None = request.config.getoption("--prepared")
    if given is not None:
        return given
    folder = tmp_path_factory.mktemp("prepared")
    subprocess.run([sys.executable, str(BENCHMARK), *PREPARE, "--prepare", str(folder)], check=True)
    return folder
