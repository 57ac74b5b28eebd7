"""Rows of the embedding (specification 2.1)."""

from __future__ import annotations

import numpy as np


def oracle(tokens: np.ndarray, weight: np.ndarray, scale: float) -> np.ndarray:
    """tokens [n], weight [V, D] → scale · rows [n, D]."""
    return weight[tokens].astype(np.float32) * np.float32(scale)
