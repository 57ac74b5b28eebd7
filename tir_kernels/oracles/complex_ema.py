"""Complex exponential moving average (specification 2.3)."""

from __future__ import annotations

import numpy as np


def oracle(u: np.ndarray, coefficients: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens u [L, D], coefficients [5, N, D] (Re q, Im q, p, Re g, Im g), state [2, N, D] (Re h, Im h)
    → u + ema [L, D], state."""
    q_re, q_im, p, g_re, g_im = coefficients
    q, g, h = q_re + 1j * q_im, g_re + 1j * g_im, state[0] + 1j * state[1]
    y = np.empty_like(u)
    for t, row in enumerate(u):
        h = q * h + p * row
        y[t] = row + (g * h).real.sum(0)
    return y, np.stack([h.real, h.imag])
