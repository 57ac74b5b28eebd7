"""Bytes and operations of a GPU's kernels, counted from the config: what each has to move and to compute."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.library import Metadata, TensorSpec
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.runtime.measure.costs import keys_seen


class Cost(NamedTuple):
    """Bytes read and written, each once, and operations, of all launches of a kernel in one call of a function."""

    bytes: int
    flop: int


def kernel_name(device_function: str) -> str:
    """The name that a kernel was launched with in the model: TVM numbers those that share one."""
    return re.sub(r"\d*_kernel(_\d+)?$", "", device_function)


def decode_costs(metadata: Metadata, position: int) -> dict[str, Cost]:
    """By the kernel's name, of one token at `position`, past the second chunk."""
    c, size = GeckoConfig(**metadata.config), _sizes(metadata)
    keys, layers = keys_seen(metadata, position), c.num_layers
    d, z, e, f, n = c.model_dim, c.z_dim, c.value_dim, c.ffn_hidden_dim, c.cema_ndim

    def product(weights: int, times: int = layers) -> Cost:
        return Cost(int(times * size.weight * weights), times * 2 * weights)

    return {
        "norm_ema": Cost(layers * 4 * d * (5 * n + 2 * 2 * n + 5), layers * 12 * n * d),
        "projections": product(d * (2 * e + z + d)),
        "attend": Cost(int(layers * keys * (z * size.key + e * size.value)), layers * 2 * keys * (z + e)),
        "merge": Cost(layers * z * c.value_head_dim * size.key, layers * 2 * z * c.value_head_dim),
        "gate": product(d * f * (2 if c.swiglu else 1)),
        "linear_residual": product(d * (e + f)),
        "head": product(d * c.num_outputs, 1),
    }


def prefill_costs(metadata: Metadata, position: int, count: int) -> dict[str, Cost]:
    """By the kernel's name, of a piece of `count` tokens from `position` on, past the second chunk."""
    c, size = GeckoConfig(**metadata.config), _sizes(metadata)
    keys = sum(keys_seen(metadata, position + i) for i in range(count))
    d, z, e, f, n = c.model_dim, c.z_dim, c.value_dim, c.ffn_hidden_dim, c.cema_ndim
    seen, layers = keys_seen(metadata, position + count - 1), c.num_layers
    memory, sums = z * c.value_head_dim, z * (c.value_head_dim + c.head_dim)

    def product(inputs: int, outputs: int, output_size: float) -> Cost:
        moved = size.weight * inputs * outputs + count * (size.activation * inputs + output_size * outputs)
        return Cost(int(layers * moved), layers * 2 * count * inputs * outputs)

    def pointwise(bytes_of_row: int, flop: int = 0) -> Cost:
        return Cost(layers * count * bytes_of_row, layers * count * flop)

    projections, ffn = product(d, z + e + d, 4), product(d, f * (2 if c.swiglu else 1), size.activation)
    residual = Cost(*map(sum, zip(product(e, d, 8), product(f, d, 8), strict=True)))
    weights = layers * c.num_heads * count * 2 * c.chunk_size * size.activation
    scores = layers * size.key * z * (seen + 2 * count)
    return {
        "timestep_norm_moments": pointwise(4 * d),
        "norm_ema": pointwise(d * (4 + size.activation + 4), 12 * n * d),
        "rms_norm": pointwise(d * (4 + size.activation)),
        "layer_norm": pointwise(d * (4 + size.activation)),
        "value_projection": product(d, e, size.value),
        "projections": projections,
        "attention_inputs": pointwise(z * (4 + 3 * size.activation + 2 * size.key)),
        "attention_statistics": Cost(scores, layers * 2 * keys * z),
        "attention_weights": Cost(scores + weights, layers * 2 * keys * z),
        "attention_values": Cost(
            int(weights + layers * (size.value * seen * e + size.key * memory))
            + layers * size.activation * count * (z + 2 * e),
            layers * 2 * (keys * e + count * memory),
        ),
        # The sum and the keys' products, which take the place of the memory's part of each value.
        "absorb": Cost(int(layers * (count * (size.key * z + size.value * e) + 8 * sums)), layers * 2 * count * sums),
        "gate": ffn,
        "linear_residual": residual,
        "head": Cost(int(size.weight * d * c.num_outputs), 2 * d * c.num_outputs),
    }


class _Sizes(NamedTuple):
    """Bytes of an element: weight matrices and values with their scales, activations that feed products, keys."""

    weight: float
    activation: int
    key: int
    value: float


def _sizes(metadata: Metadata) -> _Sizes:
    embedding = next(p for p in metadata.parameters if p.name == "embed.weight")
    state = {s.name.removeprefix("layers.0."): s for s in metadata.state}
    arithmetic = embedding.layout.arithmetic if embedding.layout else embedding.dtype
    values = _bytes(state["values"]) + (_bytes(state["value_scales"]) if "value_scales" in state else 0)
    return _Sizes(
        _bytes(embedding) / embedding.elements,
        NUMPY_DTYPES[arithmetic].itemsize,
        NUMPY_DTYPES[state["keys"].dtype].itemsize,
        values / math.prod(state["values"].shape),
    )


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * int(NUMPY_DTYPES[spec.dtype].itemsize)
