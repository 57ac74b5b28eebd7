"""Sampling and scoring against their oracles."""

from __future__ import annotations

import numpy as np
import pytest
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


# Rows of logits that are no numbers, however few of them are not; those that are, be they minus infinity.
NO_NUMBERS = [{3: np.nan}, {70: -np.nan}, {3: np.inf}, dict.fromkeys(range(OUTPUTS), np.nan)]
NO_NUMBERS += [dict.fromkeys(range(OUTPUTS), -np.inf), {3: np.nan, 4: np.inf}]
NUMBERS = [{3: -np.inf}, dict.fromkeys(range(OUTPUTS - 1), -np.inf), dict.fromkeys(range(OUTPUTS), -3e38)]
PENALTIES = Settings(top_k=5, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.5)


@pytest.mark.parametrize("settings", [Settings(0.0), Settings(), PENALTIES])
@pytest.mark.parametrize(("row", "numbers"), [(r, False) for r in NO_NUMBERS] + [(r, True) for r in NUMBERS])
def test_no_token_where_logits_are_no_numbers(row: dict[int, float], numbers: bool, settings: Settings) -> None:
    """Counted as drawn, so that a host that reads late finds it, but not for penalties."""
    rng = np.random.default_rng(2)
    logits, random = floats(rng, SLOTS, OUTPUTS), np.zeros((SLOTS, 3), np.int32)
    counts = rng.integers(0, 2, (SLOTS, OUTPUTS)).astype(np.int32)
    logits[0, list(row)] = list(row.values())
    out = draw(logits, settings, counts, random)
    expected = [oracle(logits[slot], settings, counts[slot], (0, 0), 0) for slot in (0, 2)]
    assert [*out[5][[0, 2]]] == expected
    assert (expected[0] >= 0) == numbers
    assert out[6][0, 0] == expected[0]
    assert out[3][0, 2] == 1
    assert out[4][0].sum() == counts[0].sum() + numbers
    assert expected[1] >= 0


# Temperatures of which some are subnormal in fp32, or 0.
@pytest.mark.parametrize("temperature", [1e-50, 1e-44, 1e-39, 1e-38, 1e-30, 1e-8])
@pytest.mark.parametrize(
    "settings", [Settings(), Settings(top_k=5), Settings(top_p=0.9), Settings(min_p=0.1), PENALTIES]
)
def test_a_temperature_near_zero_is_greedy(temperature: float, settings: Settings) -> None:
    rng = np.random.default_rng(3)
    for scale in (1, 1e4, 3e38):
        logits = (scale * rng.uniform(-1, 1, (SLOTS, OUTPUTS))).astype(np.float32)
        counts = rng.integers(0, 2, (SLOTS, OUTPUTS)).astype(np.int32)
        random = rng.integers(0, 9999, (SLOTS, 3)).astype(np.int32)
        drawn, greedy = (
            draw(logits, settings._replace(temperature=t), counts, random)[5][[0, 2]] for t in (temperature, 0)
        )
        assert drawn.tolist() == greedy.tolist()
        assert greedy[0] == oracle(logits[0], settings._replace(temperature=0), counts[0], (0, 0), 0)


# As far as they may be set, and what of that is 0 in fp32.
EXTREMES = [
    Settings(repetition_penalty=1e-300),
    Settings(repetition_penalty=1e-30),
    Settings(repetition_penalty=100, presence_penalty=-100, frequency_penalty=-100),
    Settings(temperature=1e-44, repetition_penalty=1e-300, presence_penalty=100),
    Settings(temperature=100, top_k=2**24),
    Settings(temperature=100, top_p=1e-300),
    Settings(top_p=1e-7, min_p=1e-300),
    Settings(min_p=1),
]


@pytest.mark.parametrize("settings", EXTREMES)
def test_extreme_settings_draw_as_the_oracle_does(settings: Settings) -> None:
    rng = np.random.default_rng(4)
    for scale in (1, 3e38):
        logits = (scale * np.clip(floats(rng, SLOTS, OUTPUTS), -1, 1)).astype(np.float32)
        counts = (rng.integers(0, 2, (SLOTS, OUTPUTS)) * 2**30).astype(np.int32)
        out = draw(logits, settings, counts, np.zeros((SLOTS, 3), np.int32))
        assert [*out[5][[0, 2]]] == [oracle(logits[slot], settings, counts[slot], (0, 0), 0) for slot in (0, 2)]


def test_one_list_of_parameters() -> None:
    assert tuple(Sampling.model_fields) == SAMPLING_PARAMETERS


def test_score() -> None:
    rng = np.random.default_rng(1)
    logits, targets = 4 * floats(rng, 5, OUTPUTS), rng.integers(0, OUTPUTS, 5).astype(np.int32)
    out = launch(sampling.score(OUTPUTS, CPU()), logits, targets, *np.zeros((2, 5), np.float32))
    log_p, entropies = score_oracle(logits.astype(float), targets)
    np.testing.assert_allclose(out[2], log_p, atol=1e-5)
    np.testing.assert_allclose(out[3], entropies, atol=1e-5)
