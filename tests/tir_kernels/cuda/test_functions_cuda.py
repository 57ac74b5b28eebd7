"""A GPU's functions, played on a CPU, against the golden vectors: logits and state, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from conftest import Golden, load_golden, random_split, with_derived
from emulated import EmulatedLibrary
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.parameters import NUMPY_DTYPES
from test_golden import check_state, feed


def engine_of(golden: Golden, scheme: str, slots: int = 1) -> Engine:
    library = EmulatedLibrary(golden.config, scheme, slots)
    values = with_derived(golden.config, golden.parameters)
    return Engine(
        library,  # type: ignore[arg-type]
        [tvm.runtime.tensor(values[s.name].astype(NUMPY_DTYPES[s.dtype])) for s in library.metadata.parameters],
    )


@pytest.mark.parametrize("name", ["public_a", "public_b"])
def test_golden(name: str) -> None:
    golden = load_golden(name)
    engine = engine_of(golden, "q0f32")
    split = random_split(np.random.default_rng(0), len(golden.tokens), golden.config.chunk_size)
    assert np.abs(feed(engine, golden.tokens, split) - golden.logits).max() < 2e-5
    check_state(engine, golden)


def test_two_slots_of_rounded_weights() -> None:
    """Two streams in turn, at different phases, are each what it is alone; bfloat16 is near float64."""
    golden = load_golden("public_a")
    engine, tokens = engine_of(golden, "q0bf16", slots=2), golden.tokens
    alone = feed(engine, tokens, [len(tokens)])
    assert np.abs(alone - golden.logits).max() < 0.05 * np.abs(golden.logits).max()
    engine.reset(1)
    engine.extend(1, tokens[:20])
    engine.reset(0)
    engine.extend(0, tokens[:33])
    for first, second in zip(tokens[33:50], tokens[20:37], strict=True):
        engine.set_token(0, first)
        engine.set_token(1, second)
        engine.decode([0, 1])
    for slot, position in ((0, 50), (1, 37)):
        assert engine.positions[slot] == position
        np.testing.assert_allclose(engine.logits(slot), alone[position - 1], atol=0.03 * np.abs(alone).max())
    engine.copy(1, 0)
    np.testing.assert_array_equal(engine.logits(0), engine.logits(1))
