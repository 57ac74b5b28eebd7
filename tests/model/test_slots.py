"""Slots: several streams in one arena, none of which sees another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.engine import Engine

CONFIG = small_config()
STARTS = {0: 3, 2: 2 * CONFIG.chunk_size - 2, 4: 5 * CONFIG.chunk_size}


@pytest.fixture(scope="module", params=["float32", "int8"])
def slots(engine: Callable[..., Engine], request: pytest.FixtureRequest) -> Engine:
    return engine(CONFIG, random_parameters(CONFIG), "q0f32", 5, request.param)


@pytest.fixture
def streams(slots: Engine) -> dict[int, list[int]]:
    """Slots at different offsets of different chunks, and tokens for each to continue with."""
    rng = np.random.default_rng(3)
    for slot in range(slots.slots):
        slots.reset(slot)
    for slot, start in STARTS.items():
        slots.extend(slot, rng.integers(0, CONFIG.vocab_size, start).tolist())
    return {slot: rng.integers(0, CONFIG.vocab_size, CONFIG.chunk_size + 2).tolist() for slot in STARTS}


def snapshot(engine: Engine, slot: int) -> dict[str, bytes]:
    return {spec.name: engine.read(spec.name, slot).tobytes() for spec in engine.metadata.state}


def test_decode_of_three_slots_is_each_alone(slots: Engine, streams: dict[int, list[int]]) -> None:
    """At different offsets, in permuted order, across boundaries; other slots stay as they are, to the byte."""
    alone = {}
    for slot, tokens in streams.items():
        slots.copy(slot, 1)
        alone[slot] = []
        for token in tokens:
            slots.set_token(1, token)
            slots.decode([1])
            alone[slot].append(slots.logits(1))
    idle = {slot: snapshot(slots, slot) for slot in (1, 3)}
    orders = ([4, 0, 2], [2, 4, 0], [0, 2, 4])
    for step in range(CONFIG.chunk_size + 2):
        for slot, tokens in streams.items():
            slots.set_token(slot, tokens[step])
        slots.decode(orders[step % 3])
        for slot in streams:
            np.testing.assert_array_equal(slots.logits(slot), alone[slot][step])
    assert {slot: snapshot(slots, slot) for slot in (1, 3)} == idle


def test_copy_continues_as_the_source_would(slots: Engine, streams: dict[int, list[int]]) -> None:
    slots.copy(2, 3)
    assert snapshot(slots, 3) == snapshot(slots, 2)
    assert slots.positions[3] == slots.positions[2]
    slots.extend(3, streams[2])
    forked = slots.logits(3)
    slots.extend(2, streams[2])
    np.testing.assert_array_equal(slots.logits(2), forked)


def test_reset_is_the_beginning(slots: Engine, streams: dict[int, list[int]]) -> None:
    others = snapshot(slots, 0)
    slots.reset(1)
    slots.reset(4)
    assert snapshot(slots, 4) == snapshot(slots, 1)
    assert slots.positions[4] == 0
    assert snapshot(slots, 0) == others
    assert np.isneginf(slots.read("layers.0.log_norm", 4)).all()


def test_sampling_of_several_slots_is_each_alone(slots: Engine, streams: dict[int, list[int]]) -> None:
    drawn = {}
    for slot in streams:
        slots.set_sampling(slot, Sampling(temperature=1.0, top_p=0.9), seed=slot)
        slots.copy(slot, 1)
        slots.sample([1])
        drawn[slot] = slots.token(1)
    slots.sample([2, 0, 4])
    assert {slot: slots.token(slot) for slot in streams} == drawn


@pytest.mark.parametrize("wrong", [[5], [-1], [0, 0]])
def test_wrong_slots_are_refused(slots: Engine, wrong: list[int]) -> None:
    with pytest.raises(GeckoError, match="expected different ones of 0 to 4"):
        slots.decode(wrong)


@pytest.mark.parametrize(("tokens", "message"), [([], "no tokens"), ([1, 53], "token id 53"), ([-1], "-1")])
def test_wrong_tokens_are_refused(slots: Engine, tokens: list[int], message: str) -> None:
    with pytest.raises(GeckoError, match=message):
        slots.extend(0, tokens)
