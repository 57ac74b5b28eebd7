"""Constants that follow from the parameters and the config, made once in float64.

They replace functions of the device: no angle, logistic or power is computed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gecko_mlc.config import GeckoConfig

# Tokens of a block of time: a GPU scans blocks side by side, and joins them with powers of q.
EMA_BLOCK = 64

# Parameters that the compiled model knows only through constants derived from them.
CEMA_PARAMETERS = ("alpha", "delta", "theta", "gamma")


def cema_name(layer: int) -> str:
    """The name of a layer's EMA coefficients."""
    return f"layers.{layer}.mega.cema.coefficients"


def block_decay_name(layer: int) -> str:
    """The name of a layer's decay over a block of time."""
    return f"layers.{layer}.mega.cema.block_decay"


def derived_shapes(config: GeckoConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all derived constants, fp32."""
    half = config.head_dim // 2
    yield "rope.cos", (2 * config.chunk_size, half)
    yield "rope.sin", (2 * config.chunk_size, half)
    for layer in range(config.num_layers):
        yield cema_name(layer), (5, config.cema_ndim, config.model_dim)
        yield block_decay_name(layer), (2, config.cema_ndim, config.model_dim)


def rope_tables(config: GeckoConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [2C, dz/2] of the angles r·base^(−2j/dz) (specification 2.5, 8b), fp32."""
    j = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    angles = np.arange(2 * config.chunk_size, dtype=np.float64)[:, None] * config.rope_base**-j
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def cema_coefficients(
    alpha: np.ndarray, delta: np.ndarray, theta: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of alpha, delta [D, N], theta [D], gamma [D, N, 2] (specification 2.3), fp32: the coefficients [5, N, D]
    Re q, Im q, p, Re g, Im g; and Re, Im [2, N, D] of q to the power `EMA_BLOCK`."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-x.astype(np.float64)))

    components = alpha.shape[1]
    p = sigmoid(alpha)
    log_modulus = np.log1p(-p * sigmoid(delta))
    omega = np.arange(1, components + 1) * sigmoid(theta)[:, None] * (2.0 * np.pi / components)

    def power(k: int) -> tuple[np.ndarray, np.ndarray]:
        modulus = np.exp(k * log_modulus)
        return modulus * np.cos(k * omega), modulus * np.sin(k * omega)

    def stacked(*parts: np.ndarray) -> np.ndarray:
        return np.stack([part.T for part in parts]).astype(np.float32)

    return stacked(*power(1), p, gamma[..., 0], gamma[..., 1]), stacked(*power(EMA_BLOCK))
