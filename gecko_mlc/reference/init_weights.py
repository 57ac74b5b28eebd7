"""Random parameters: the start of a training run, and checkpoints for benchmarks."""

from __future__ import annotations

import math
import zlib

import numpy as np

from gecko_mlc.config import GeckoConfig, ParameterSpec


def matrix_deviation(config: GeckoConfig, parameter: ParameterSpec) -> float:
    """The standard deviation of a weight matrix's initial values; less for what is added to the residual stream."""
    inputs = config.model_dim if parameter.name == "embed.weight" else parameter.shape[1]
    residual = parameter.name.endswith((".wh1.weight", ".wh2.weight", ".fc2.weight"))
    return 1.0 / math.sqrt(inputs * (2 * config.num_layers if residual else 1))


def initial_value(config: GeckoConfig, parameter: ParameterSpec, seed: int) -> np.ndarray:
    """The initial fp32 value of one parameter, shape `parameter.shape`.

    Each tensor has a random stream of its own, drawn from `seed` and its name, so a checkpoint is the
    same however it is cut into pieces. Raises `KeyError` for a parameter that is not Gecko's.
    """
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(parameter.name.encode())]))
    shape = parameter.shape
    leaf = ".".join(parameter.name.split(".")[-2:])

    def normal(deviation: float) -> np.ndarray:
        value = rng.standard_normal(shape, dtype=np.float32)
        value *= np.float32(deviation)
        return value

    if parameter.matrix:
        return normal(matrix_deviation(config, parameter))
    if leaf == "cema.alpha":
        return normal(0.2)
    if leaf == "cema.delta":
        # Time constants 1/(a·d) from 2 to about 500 tokens, spread over the components.
        components = np.linspace(0.0, -5.5, config.cema_ndim, dtype=np.float32)
        return normal(0.2) + components
    if leaf == "cema.theta":
        # σ(theta) log-spaced from nearly 1 down to 1/D: base frequencies from fast to slow.
        fraction = np.arange(1, config.model_dim + 1, dtype=np.float64) / (config.model_dim + 1)
        frequency = np.exp(-math.log(config.model_dim) * fraction)
        return np.log(frequency / (1.0 - frequency)).astype(np.float32)
    if leaf == "cema.gamma":
        return normal(1.0 / math.sqrt(config.cema_ndim))
    if leaf in ("mega.gamma", "mega.beta"):
        return normal(0.02)
    if leaf == "nffn.alpha":
        layer = int(parameter.name.split(".")[1])
        return np.full(shape, 0.1 * 0.5**layer, np.float32)
    if leaf.endswith((".weight", ".bias")):
        return np.zeros(shape, np.float32)
    raise KeyError(parameter.name)
