"""What tests of norms and of the EMA share: results to fill, states of three slots, how close a result is."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np

from support.launch import floats

BETAS, EPS = (0.999, 0.9999), 1e-5
# Of a result: the distance of two neighbours of its dtype, relative.
PRECISION = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def empty(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.full(shape, np.nan, dtype)


def assert_close(result: np.ndarray, expected: np.ndarray, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(result.astype(float), expected, rtol=PRECISION[result.dtype.name], atol=atol)


def moments_of(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of 3 slots."""
    return floats(rng, 3, groups), 1 + floats(rng, 3, groups) ** 2


def coefficients_of(rng: np.random.Generator, components: int, dim: int) -> np.ndarray:
    """Of an EMA that forgets; its first component takes nothing in."""
    coefficients = rng.uniform(-0.6, 0.6, (5, components, dim)).astype(np.float32)
    coefficients[2] = rng.uniform(0.1, 0.9, (components, dim))
    coefficients[2, 0, 0] = 0
    return coefficients


def ema_of(rng: np.random.Generator, components: int, dim: int) -> np.ndarray:
    """States of 3 slots; where nothing was taken in there is nothing."""
    ema = floats(rng, 3, 2, components, dim)
    ema[:, :, 0, 0] = 0
    return ema
