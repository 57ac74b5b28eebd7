"""The compiled library against the golden vectors: logits and state, whatever the split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.golden import LOGITS, check_state, feed
from support.models import Golden, random_split

from gecko_mlc.runtime.engine import Engine


@pytest.fixture(scope="module")
def golden_engine(golden: Golden, engine: Callable[..., Engine]) -> Engine:
    return engine(golden.config, golden.parameters)


def test_one_shot(golden: Golden, golden_engine: Engine) -> None:
    logits = feed(golden_engine, golden.tokens, [len(golden.tokens)])
    assert np.abs(logits - golden.logits).max() < LOGITS
    check_state(golden_engine, golden)


def test_token_by_token(golden: Golden, golden_engine: Engine) -> None:
    logits = feed(golden_engine, golden.tokens, [1] * len(golden.tokens))
    assert np.abs(logits - golden.logits).max() < LOGITS
    check_state(golden_engine, golden)


def test_200_random_splits(golden: Golden, golden_engine: Engine) -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        lengths = random_split(rng, len(golden.tokens), 2 * golden.config.chunk_size)
        logits = feed(golden_engine, golden.tokens, lengths)
        assert np.abs(logits - golden.logits).max() < LOGITS, lengths
    check_state(golden_engine, golden)


def test_prefill_leaves_the_last_logits(golden: Golden, golden_engine: Engine) -> None:
    golden_engine.reset(0)
    golden_engine.extend(0, golden.tokens)
    assert np.abs(golden_engine.logits(0) - golden.logits[-1]).max() < LOGITS


def test_score_is_the_log_softmax(golden: Golden, golden_engine: Engine) -> None:
    golden_engine.reset(0)
    log_p, entropies = golden_engine.score(0, golden.tokens[:-1], golden.tokens[1:])
    logits = golden.logits[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_p, expected[np.arange(len(log_p)), golden.tokens[1:]], atol=2e-5)
    np.testing.assert_allclose(entropies, -(np.exp(expected) * expected).sum(-1), atol=2e-5)
