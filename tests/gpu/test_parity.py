"""Libraries on a GPU against float64's golden vectors and fp32 arithmetic on the same rounded weights."""

from __future__ import annotations

from pathlib import Path

from support.golden import LOGITS
from support.gpu import parity
from support.gpu.models import make_engine, random_parameters

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.library import Library


def test_golden_logits_over_any_split(prepared: Path) -> None:
    errors = parity.golden(prepared)
    assert len(errors) == 2
    assert max(errors.values()) < LOGITS


def test_slots_in_turn_and_a_second_load(prepared: Path) -> None:
    errors = parity.conversations(prepared)
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5


def test_logits_of_large_models(prepared: Path) -> None:
    """Rounding shows, and no token that is beyond doubt changes."""
    libraries = [path for path in sorted(prepared.glob("*-1.so")) if not path.name.startswith("golden")]
    assert libraries
    for path in libraries:
        library = Library(path)
        config = GeckoConfig(**library.metadata.config)
        parameters = random_parameters(config, quantization(library.metadata.quantization).model_dtype)
        result = parity.logits(make_engine(library, parameters), config, parameters)
        assert max(result["prefill_relative_error"], result["decode_relative_error"]) < 3e-2, path.name
        assert result["greedy_compared"] > 50, path.name
        assert result["greedy_differing"] == 0, path.name
