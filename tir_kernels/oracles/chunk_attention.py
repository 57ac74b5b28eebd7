"""Sliding chunk attention (specification 2.6)."""

from __future__ import annotations

import numpy as np


def oracle(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, chunk: int, offset: int, heads: int
) -> np.ndarray:
    """Row at `offset` of `chunk`: queries [2, Z] (own, previous), keys [2, C, Z], values [2, C, E] by
    parity → [E]."""
    own = chunk % 2
    seen_k = [(queries[0], keys[own, : offset + 1])]
    seen_v = [values[own, : offset + 1]]
    if chunk >= 1:
        seen_k.append((queries[1], keys[1 - own]))
        seen_v.append(values[1 - own])
    size = queries.shape[1] // heads
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = np.concatenate([k[:, part] @ q[part] for q, k in seen_k])
        weights = np.exp(scores - scores.max())
        v = np.concatenate(seen_v).reshape(len(scores), heads, -1)[:, h]
        out.append(weights @ v / weights.sum())
    return np.concatenate(out)
