"""Checkpoints of a compiled model's state: going back is exact, wherever it was and whatever came since."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.engine import Engine

CONFIG = small_config()


@pytest.fixture(scope="module")
def model(engine: Callable[..., Engine]) -> Engine:
    return engine(CONFIG, random_parameters(CONFIG), "q0f32", 2)


@pytest.mark.parametrize("begin", [1, 5, 7, 8, 21])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
@pytest.mark.parametrize("by_tokens", [True, False], ids=["decode", "prefill"])
def test_restore(model: Engine, begin: int, count: int, by_tokens: bool) -> None:
    """What comes next has the same logits, to the bit, within chunks and over their ends."""
    rng = np.random.default_rng(begin)
    before, between, after = (rng.integers(0, CONFIG.vocab_size, n).tolist() for n in (begin, count, 12))
    model.reset(0)
    model.extend(0, before)
    model.copy(0, 1)
    expected = model.extend_logits(1, after)
    checkpoint = model.checkpoint(0)
    for piece in [[token] for token in between] if by_tokens else [between]:
        model.extend(0, piece)
    model.restore(0, checkpoint)
    assert model.positions[0] == begin
    np.testing.assert_array_equal(model.extend_logits(0, after), expected)
    model.restore(0, checkpoint)
    model.release(0)
    np.testing.assert_array_equal(model.extend_logits(0, after), expected)


def test_a_checkpoint_goes_along_when_a_state_is_set_aside(model: Engine) -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, CONFIG.vocab_size, n).tolist() for n in (13, 12))
    model.reset(0)
    model.extend(0, before)
    model.copy(0, 1)
    expected = model.extend_logits(1, after)
    checkpoint = model.checkpoint(0)
    model.extend(0, after)
    saved = model.save(0)
    model.reset(0)
    model.extend(0, after)
    model.load(1, saved)
    assert model.positions[1] == 25
    model.extend(1, after)
    model.restore(1, checkpoint)
    np.testing.assert_array_equal(model.extend_logits(1, after), expected)


def test_draws_that_are_set_are_those_that_were_made(model: Engine) -> None:
    """The generator, counts, recent tokens and the current one, of fewer and of more than are remembered."""
    for count in (1, 5, 70):
        for slot in (0, 1):
            model.reset(slot)
            model.extend(slot, [3, 5])
            model.write("recent", slot, np.zeros(64, np.int32))
            model.set_sampling(slot, Sampling(temperature=1.0, presence_penalty=0.5), seed=2**40 + 9)
        drawn = []
        for _ in range(count):
            model.sample([0])
            drawn.append(model.token(0))
        model.set_draws(1, 2**40 + 9, drawn)
        for name in ("random", "counts", "recent", "token"):
            np.testing.assert_array_equal(model.read(name, 0), model.read(name, 1), name)
