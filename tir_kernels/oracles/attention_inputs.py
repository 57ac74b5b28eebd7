"""From z to queries and keys (specification 2.4, 2.5)."""

from __future__ import annotations

import math

import numpy as np


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope_heads: int) -> np.ndarray:
    """Rotate the first heads of x [H, dz] by one position's cos, sin [dz/2]."""
    y = x.copy()
    even, odd = x[:rope_heads, 0::2], x[:rope_heads, 1::2]
    y[:rope_heads, 0::2] = even * cos - odd * sin
    y[:rope_heads, 1::2] = even * sin + odd * cos
    return y


def oracle(
    z: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    offset: int,
    heads: int,
    rope_heads: int,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z [Z] at `offset` of its chunk; gamma, beta [4, Z]; cos, sin [2C, dz/2]
    → queries [2, Z] (own chunk, previous chunk), softmax(aq), k, ak [Z]."""
    chunk_size = len(cos) // 2
    groups = z.reshape(heads, -1)
    normed = groups / np.sqrt((groups * groups).mean(-1, keepdims=True) + eps)
    q, k, aq, ak = (
        normed * (1 + gamma[i].reshape(heads, -1)) / math.sqrt(groups.shape[1]) + beta[i].reshape(heads, -1)
        for i in range(4)
    )
    queries = [rotate(q, cos[p], sin[p], rope_heads).ravel() for p in (offset, offset + chunk_size)]
    weights = np.exp(aq - aq.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    k = rotate(k, cos[offset], sin[offset], rope_heads)
    return np.stack(queries), weights.ravel(), k.ravel(), ak.ravel()
