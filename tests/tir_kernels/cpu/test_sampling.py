"""Sampling and scoring against their oracles."""

from __future__ import annotations

import numpy as np
from support.launch import floats, ints, launch

from gecko_mlc.formats.library import SAMPLING_PARAMETERS
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.tir_kernels.cpu import sampling
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.sampling import Settings, oracle, score_oracle

OUTPUTS, SLOTS = 90, 3


def draw(
    logits: np.ndarray,
    settings: Settings,
    counts: np.ndarray,
    random: np.ndarray,
    candidates: int = OUTPUTS,
) -> list[np.ndarray]:
    rows = np.tile(np.array(settings, np.float32), (SLOTS, 1))
    return launch(
        sampling.sample(OUTPUTS, candidates, SLOTS, CPU()),
        ints(2, 0), logits, rows, random, counts, np.full(SLOTS, -1, np.int32),
        np.full((SLOTS, sampling.RECENT_TOKENS), -1, np.int32), *np.zeros((2, 2, OUTPUTS), np.float32),
    )  # fmt: skip


def test_draws_as_the_oracle_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        logits, counts = 2 * floats(rng, SLOTS, OUTPUTS), rng.integers(0, 9, (SLOTS, OUTPUTS)) // 7
        choices = ([0, 0.7, 1.3], [0, 5, 40], [1, 0.9, 0.3], [0, 0.05, 0.3], [1, 1.3], [0, 0.5], [0, 0.2])
        settings = Settings(*(float(rng.choice(c)) for c in choices))
        random = rng.integers(-(2**31), 2**31, (SLOTS, 3)).astype(np.int32)
        random[:, 2] = rng.integers(0, 1000, SLOTS)
        out = draw(logits, settings, counts.astype(np.int32), random)
        for slot in (0, 2):
            seed, counter = tuple(int(v) for v in random[slot, :2].view(np.uint32)), int(random[slot, 2])
            expected = oracle(logits[slot], settings, counts[slot], seed, counter)
            assert out[5][slot] == expected, settings
            assert out[3][slot, 2] == counter + 1
            assert out[4][slot].sum() == counts[slot].sum() + 1
            assert out[6][slot, counter % sampling.RECENT_TOKENS] == expected
        assert out[5][1] == -1


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.full((SLOTS, OUTPUTS), -50, np.float32)
    logits[:, [3, 10, 77]] = np.log([0.5, 0.3, 0.2])
    random, seen = np.zeros((SLOTS, 3), np.int32), np.zeros(OUTPUTS)
    for counter in range(2000):
        random[:, 2] = counter
        seen[draw(logits, Settings(), np.zeros((SLOTS, OUTPUTS), np.int32), random)[5][0]] += 1
    np.testing.assert_allclose(seen[[3, 10, 77]] / 2000, [0.5, 0.3, 0.2], atol=0.04)


def test_outputs_beyond_the_vocabulary_are_never_drawn() -> None:
    logits = np.zeros((SLOTS, OUTPUTS), np.float32)
    logits[:, 50:] = 9
    out = draw(
        logits,
        Settings(0.0),
        np.zeros((SLOTS, OUTPUTS), np.int32),
        np.zeros((SLOTS, 3), np.int32),
        50,
    )
    assert out[5][0] == 0


def test_one_list_of_parameters() -> None:
    assert tuple(Sampling.model_fields) == SAMPLING_PARAMETERS


def test_score() -> None:
    rng = np.random.default_rng(1)
    logits, targets = 4 * floats(rng, 5, OUTPUTS), rng.integers(0, OUTPUTS, 5).astype(np.int32)
    out = launch(sampling.score(OUTPUTS, CPU()), logits, targets, *np.zeros((2, 5), np.float32))
    log_p, entropies = score_oracle(logits.astype(float), targets)
    np.testing.assert_allclose(out[2], log_p, atol=1e-5)
    np.testing.assert_allclose(out[3], entropies, atol=1e-5)
