"""Constants that follow from the parameters and the config, made once in float64.

They replace functions of the device: no angle, logistic or power is computed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gecko_mlc.config import GeckoConfig

# Parameters that the compiled model knows only through constants derived from them.
CEMA_PARAMETERS = ("alpha", "delta", "theta", "gamma")


def cema_name(layer: int) -> str:
    """The name of a layer's EMA coefficients."""
    return f"layers.{layer}.mega.cema.coefficients"


def derived_shapes(config: GeckoConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all derived constants, fp32."""
    half = config.head_dim // 2
    yield "rope.cos", (2 * config.chunk_size, half)
    yield "rope.sin", (2 * config.chunk_size, half)
    for layer in range(config.num_layers):
        yield cema_name(layer), (5, config.cema_ndim, config.model_dim)


def rope_tables(config: GeckoConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [2C, dz/2] of the angles r·base^(−2j/dz) (specification 2.5, 8b), fp32."""
    j = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    angles = np.arange(2 * config.chunk_size, dtype=np.float64)[:, None] * config.rope_base**-j
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def cema_coefficients(alpha: np.ndarray, delta: np.ndarray, theta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """[5, N, D] fp32: Re q, Im q, p, Re g, Im g of specification 2.3, from alpha, delta [D, N],
    theta [D], gamma [D, N, 2]."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-x.astype(np.float64)))

    components = alpha.shape[1]
    with np.errstate(over="ignore", divide="ignore"):  # Of large numbers, whose logistics are 0 and 1.
        p = sigmoid(alpha)
        modulus = np.exp(np.log1p(-p * sigmoid(delta)))
        omega = np.arange(1, components + 1) * sigmoid(theta)[:, None] * (2.0 * np.pi / components)
    parts = (modulus * np.cos(omega), modulus * np.sin(omega), p, gamma[..., 0], gamma[..., 1])
    return np.stack([part.T for part in parts]).astype(np.float32)
