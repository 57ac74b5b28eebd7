"""Group RMS norm (specification 2.4) and group layer norm (2.8)."""

from __future__ import annotations

import numpy as np


def rms_norm_oracle(x: np.ndarray, weight: np.ndarray, groups: int, eps: float) -> np.ndarray:
    """x [n, D], weight [D] (offset from 1) → y [n, D]."""
    g = x.reshape(len(x), groups, -1)
    y = g / np.sqrt((g * g).mean(-1, keepdims=True) + eps)
    return y.reshape(x.shape) * (1 + weight)


def layer_norm_oracle(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, groups: int, eps: float) -> np.ndarray:
    """x [n, D], weight [D] (offset from 1), bias [D] → y [n, D]."""
    g = x.reshape(len(x), groups, -1)
    y = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)
    return y.reshape(x.shape) * (1 + weight) + bias
