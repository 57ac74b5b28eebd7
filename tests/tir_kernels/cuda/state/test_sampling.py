"""Sampling on a GPU against its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from support.launch import floats
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cpu.sampling import RECENT_TOKENS
from gecko_mlc.tir_kernels.cuda.state import sampling
from gecko_mlc.tir_kernels.oracles.sampling import Settings, oracle, threefry

# Seeds whose first random word has 24 zeros, or ones, at its upper end.
LOWEST, HIGHEST = 4166419, 17762771


class Drawn(NamedTuple):
    """The state of the slots after a draw."""

    random: np.ndarray
    counts: np.ndarray
    token: np.ndarray
    recent: np.ndarray


def draw(
    logits: np.ndarray,
    settings: Sequence[Settings],
    random: np.ndarray,
    counts: np.ndarray | None = None,
    slots: np.ndarray | None = None,
    candidates: int | None = None,
) -> Drawn:
    """A token for each of the slots, all by default."""
    total, outputs = logits.shape
    drawn = Drawn(
        random.copy(),
        np.zeros((total, outputs), np.int32) if counts is None else counts.copy(),
        np.full(total, -1, np.int32),
        np.full((total, RECENT_TOKENS), -1, np.int32),
    )
    kernel = sampling.sample(outputs, outputs if candidates is None else candidates, total)
    slots = np.arange(total, dtype=np.int32) if slots is None else slots
    launch_cuda(kernel, slots, logits.astype(np.float32), np.array(settings, np.float32), *drawn)
    return drawn


# The last has more outputs than registers hold.
@pytest.mark.parametrize(("outputs", "candidates"), [(90, 90), (1003, 1000), (6148, 6143), (33000, 33000)])
def test_draws_as_the_oracle_does(outputs: int, candidates: int) -> None:
    """Outputs beyond the candidates are NaN, and what is not named stays as it was."""
    rng, total = np.random.default_rng(0), 24
    logits = (rng.choice([1, 2, 5], (total, 1)) * floats(rng, total, outputs)).astype(np.float32)
    logits[:, candidates:] = np.nan
    counts = (rng.integers(0, 9, (total, outputs)) // 7).astype(np.int32)
    choices = ([0, 0.1, 0.7, 1.3], [0, 5, 40, 1e5], [1, 0.9, 0.3], [0, 0.05, 0.3], [1, 1.3], [0, 0.5], [0, 0.2])
    settings = [Settings(*(float(rng.choice(c)) for c in choices)) for _ in range(total)]
    random = rng.integers(-(2**31), 2**31, (total, 3)).astype(np.int32)
    random[:, 2] = rng.integers(0, 1000, total)
    slots = rng.permutation(total)[:-1].astype(np.int32)
    drawn = draw(logits, settings, random, counts, slots, candidates)
    expected = Drawn(random.copy(), counts.copy(), np.full_like(drawn.token, -1), np.full_like(drawn.recent, -1))
    for slot in slots:
        seed, counter = tuple(int(v) for v in random[slot, :2].view(np.uint32)), int(random[slot, 2])
        rows = logits[slot, :candidates], counts[slot, :candidates]
        expected.token[slot] = token = oracle(rows[0], settings[slot], rows[1], seed, counter)
        expected.random[slot, 2] += 1
        expected.counts[slot, token] += 1
        expected.recent[slot, counter % RECENT_TOKENS] = token
    for actual, wanted in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_the_ends_of_the_random_numbers() -> None:
    """They lead to the first and to the last candidate that has a weight."""
    assert [threefry((seed, 0), 0) >> 8 for seed in (LOWEST, HIGHEST)] == [0, 2**24 - 1]
    rng, total = np.random.default_rng(1), 6
    logits = np.full((total, 5000), -np.inf)
    logits[:, 600:4100] = 3 * floats(rng, total, 3500)
    logits[4:, 600:4100] = 1
    random = np.zeros((total, 3), np.int32)
    random[:, 0] = [LOWEST, HIGHEST] * (total // 2)
    settings = [Settings()] * 2 + [Settings(top_k=50, top_p=0.95, min_p=0.001)] * 4
    kept = [np.flatnonzero(row >= np.sort(row)[-50]) for row in logits]
    token = draw(logits, settings, random).token
    assert token[[0, 1, 4, 5]].tolist() == [600, 4099] * 2
    assert kept[2][0] <= token[2] and token[3] <= kept[3][-1]


def test_scores_without_a_distribution() -> None:
    """The first largest score, or the first output if there is none. Ties at a threshold are all kept."""
    logits = np.zeros((6, 90))
    logits[0, [20, 40]] = 1
    logits[1, 33] = 3e38
    logits[2:4, [7, 50]] = 1
    settings = [Settings(0.0), Settings(top_k=5, top_p=0.5)]
    settings += [Settings(top_k=1), Settings(top_k=1), Settings(top_p=0.0), Settings(min_p=2.0)]
    random = np.zeros((6, 3), np.int32)
    random[:, 0] = [0, 0, LOWEST, HIGHEST, HIGHEST, HIGHEST]
    assert draw(logits, settings, random).token.tolist() == [20, 33, 7, 50, 89, 0]


# The first has a vector that is not whole, the last more outputs than registers hold.
@pytest.mark.parametrize(("outputs", "candidates"), [(90, 89), (33000, 33000)])
@pytest.mark.parametrize("temperature", [0, 1])
def test_no_token_where_logits_are_no_numbers(outputs: int, candidates: int, temperature: float) -> None:
    """Wherever it is, in the slot alone; counted as drawn, so that a host that reads late finds it."""
    rng, total = np.random.default_rng(2), 8
    logits = floats(rng, total, outputs)
    logits[0, 3] = logits[1, candidates - 1] = np.nan
    logits[2, candidates // 2], logits[3, :2] = np.inf, [np.nan, np.inf]
    logits[4] = -np.inf
    # Those that are numbers.
    logits[5, : candidates - 1], logits[6, 3], logits[7] = -np.inf, -np.inf, -3e38
    counts = rng.integers(0, 2, (total, outputs)).astype(np.int32)
    settings = [Settings(temperature, top_k=5, top_p=0.9, repetition_penalty=1.3)] * total
    drawn = draw(logits, settings, np.zeros((total, 3), np.int32), counts, candidates=candidates)
    rows = zip(logits[:, :candidates], settings, counts[:, :candidates], strict=True)
    expected = [oracle(*row, (0, 0), 0) for row in rows]
    assert drawn.token.tolist() == drawn.recent[:, 0].tolist() == expected
    assert [token >= 0 for token in expected] == [False] * 5 + [True] * 3
    assert (drawn.counts.sum(1) - counts.sum(1)).tolist() == [0] * 5 + [1] * 3
    assert drawn.random[:, 2].tolist() == [1] * total


def test_extreme_settings() -> None:
    """A temperature near zero is greedy, also where it is subnormal; what penalties overflow is the largest number."""
    rng = np.random.default_rng(3)
    greedy = [
        Settings(t, *rest)
        for t in (1e-50, 1e-44, 1e-39, 1e-38, 1e-30)
        for rest in ((), (5,), (0, 0.9), (0, 1, 0.1), (0, 1, 0, 1.3, 0.5))
    ]
    others = [
        Settings(repetition_penalty=1e-300),
        Settings(repetition_penalty=100, presence_penalty=-100, frequency_penalty=-100),
        Settings(temperature=100, top_p=1e-300),
        Settings(min_p=1, top_p=1e-7),
    ]
    settings = [*greedy, *others]
    counts = (rng.integers(0, 2, (len(settings), 90)) * 2**30).astype(np.int32)
    for scale in (1, 3e38):
        logits = (scale * rng.uniform(-1, 1, (len(settings), 90))).astype(np.float32)
        tokens = draw(logits, settings, np.zeros((len(settings), 3), np.int32), counts).token.tolist()
        used = [*(s._replace(temperature=0) for s in greedy), *others]
        assert tokens == [oracle(row, s, c, (0, 0), 0) for row, s, c in zip(logits, used, counts, strict=True)]
