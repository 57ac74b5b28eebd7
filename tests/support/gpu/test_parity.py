"""The GPU's parity, with libraries for this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gecko_mlc.runtime.library import Library
from support.gpu import parity
from support.gpu.models import make_engine, random_parameters
from support.models import load_golden, small_config


def test_golden_and_conversations(compiled: Callable[..., Path], tmp_path: Path) -> None:
    golden = load_golden("public_b")
    path = tmp_path / f"golden-{golden.name}.so"
    path.symlink_to(compiled(golden.config, "q0f32", 2))
    assert parity.golden(tmp_path)[path.stem] < 2e-4
    assert parity.conversations(tmp_path)[path.stem] < 1e-5


@pytest.mark.parametrize(("scheme", "dtype"), [("q0bf16", "bfloat16"), ("q4f16_1", "float16")])
def test_logits(compiled: Callable[..., Path], scheme: str, dtype: str) -> None:
    config = small_config()
    library = Library(compiled(config, scheme))
    parameters = random_parameters(config, dtype, "cpu")
    engine = make_engine(library, parameters)
    result = parity.logits(engine, config, parameters, steps=8)
    assert result["prefill_relative_error"] < 3e-2
    assert result["decode_relative_error"] < 3e-2
    assert result["greedy_compared"] > 5
    assert result["greedy_differing"] == 0
