"""The choice of a token, and scores of given ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
LARGEST = np.finfo(np.float32).max


class Settings(NamedTuple):
    """One row of the `sampling` state; 0 turns temperature (greedy), top_k and min_p off."""

    temperature: float = 1.0
    top_k: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def threefry(seed: tuple[int, int], counter: int) -> int:
    """First word of Threefry-2x32-20 of (counter, 0) under the key `seed`."""
    word = 2**32 - 1
    keys = (seed[0] & word, seed[1] & word, (seed[0] ^ seed[1] ^ PARITY) & word)
    x0, x1 = (counter + keys[0]) & word, keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = (x0 + x1) & word
            x1 = (x1 << rotation | x1 >> (32 - rotation)) & word ^ x0
        x0 = (x0 + keys[(group + 1) % 3]) & word
        x1 = (x1 + keys[(group + 2) % 3] + group + 1) & word
    return x0


def oracle(logits: np.ndarray, settings: Settings, counts: np.ndarray, seed: tuple[int, int], counter: int) -> int:
    """The token drawn from fp32 logits [O], with counts [O] of the tokens drawn before.

    -1 where one of the logits is NaN or infinity, or all are minus infinity. What penalties make of the others stays
    finite.
    """
    if not np.isfinite(logits.max()):
        return -1
    scores, seen = logits.astype(np.float64), (counts > 0) & (logits > -np.inf)
    repetition = np.float32(settings.repetition_penalty)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = np.where(scores[seen] > 0, scores[seen] / repetition, scores[seen] * repetition)
        penalized = scaled.astype(np.float32) - np.float32(settings.presence_penalty)
        penalized -= (np.float32(settings.frequency_penalty) * counts[seen]).astype(np.float32)
    scores = logits.astype(np.float32)
    scores[seen] = np.clip(penalized, -LARGEST, LARGEST)
    temperature = np.float32(settings.temperature)
    if temperature <= 0:
        return int(scores.argmax())
    with np.errstate(over="ignore"):
        weights = np.exp((scores - scores.max()) / temperature)
    if settings.top_k > 0:
        kept = np.sort(scores)[-min(int(settings.top_k), len(scores))]
        weights[scores < kept] = 0
    if settings.top_p < 1:
        order = np.sort(weights)[::-1]
        reached = np.searchsorted(np.cumsum(order), settings.top_p * weights.sum())
        weights[weights < order[min(reached, len(order) - 1)]] = 0
    weights[weights < settings.min_p] = 0
    draw = (threefry(seed, counter) >> 8) / 2**24 * weights.sum()
    return int(np.searchsorted(np.cumsum(weights), draw, side="right"))


def score_oracle(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits [n, O], targets [n] → log-probabilities [n] of the targets, entropies [n] in nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_p[np.arange(len(targets)), targets], -(np.exp(log_p) * log_p).sum(-1)
