"""Oracles need nothing but NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gecko_mlc.tir_kernels import oracles

NAMES = sorted(path.stem for path in Path(oracles.__path__[0]).glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_loads_no_compiler(name: str) -> None:
    script = f"import gecko_mlc.tir_kernels.oracles.{name}, sys; assert not {{'tvm', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
