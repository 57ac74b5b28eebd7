"""Bytes and operations of a GPU's kernels, counted from the config: what each has to move and to compute."""

from __future__ import annotations

import re
from typing import NamedTuple

from gecko_mlc.runtime.bench import keys_seen
from gecko_mlc.runtime.parameters import NUMPY_DTYPES

from gecko_mlc.abi import Metadata
from gecko_mlc.config import GeckoConfig


class Cost(NamedTuple):
    """Bytes read and written, each once, and operations, of all launches of a kernel in one call of a function."""

    bytes: int
    flop: int


def kernel_name(device_function: str) -> str:
    """The name that a kernel was launched with in the model: TVM numbers those that share one."""
    return re.sub(r"\d*_kernel(_\d+)?$", "", device_function)


def decode_costs(metadata: Metadata, position: int) -> dict[str, Cost]:
    """By the kernel's name, of one token at `position`, past the second chunk."""
    c, weight, cache = _sizes(metadata)
    keys, layers = keys_seen(metadata, position), c.num_layers
    d, z, e, f, n = c.model_dim, c.z_dim, c.value_dim, c.ffn_hidden_dim, c.cema_ndim
    projections, ffn = d * (2 * e + z + d), d * f * (2 if c.swiglu else 1)
    return {
        "norm_ema": Cost(layers * 4 * d * (5 * n + 2 * 2 * n + 5), layers * 12 * n * d),
        "projections": Cost(layers * weight * projections, layers * 2 * projections),
        "attend": Cost(layers * keys * (z + e) * cache, layers * 2 * keys * (z + e)),
        "merge": Cost(layers * z * c.value_head_dim * cache, layers * 2 * z * c.value_head_dim),
        "gate": Cost(layers * weight * ffn, layers * 2 * ffn),
        "linear_residual": Cost(layers * weight * d * (e + f), layers * 2 * d * (e + f)),
        "head": Cost(weight * d * c.num_outputs, 2 * d * c.num_outputs),
    }


def prefill_costs(metadata: Metadata, position: int, count: int) -> dict[str, Cost]:
    """By the kernel's name, of a piece of `count` tokens from `position` on, past the second chunk."""
    c, weight, cache = _sizes(metadata)
    keys = sum(keys_seen(metadata, position + i) for i in range(count))
    d, z, e, f, n = c.model_dim, c.z_dim, c.value_dim, c.ffn_hidden_dim, c.cema_ndim
    seen, layers = keys_seen(metadata, position + count - 1), c.num_layers
    memory, sums = z * c.value_head_dim, z * (c.value_head_dim + c.head_dim)

    def product(inputs: int, outputs: int, output_size: int) -> Cost:
        moved = weight * inputs * outputs + count * (weight * inputs + output_size * outputs)
        return Cost(layers * moved, layers * 2 * count * inputs * outputs)

    def pointwise(size: int, flop: int = 0) -> Cost:
        return Cost(layers * count * size, layers * count * flop)

    projections, ffn = product(d, z + e + d, 4), product(d, f * (2 if c.swiglu else 1), weight)
    residual = Cost(*map(sum, zip(product(e, d, 8), product(f, d, 8), strict=True)))
    weights = layers * c.num_heads * count * 2 * c.chunk_size * weight
    return {
        "timestep_norm_moments": pointwise(4 * d),
        "norm_ema": pointwise(d * (4 + weight + 4), 12 * n * d),
        "rms_norm": pointwise(d * (4 + weight)),
        "layer_norm": pointwise(d * (4 + weight)),
        "value_projection": product(d, e, cache),
        "projections": projections,
        "attention_inputs": pointwise(z * (4 + 3 * weight + 2 * cache)),
        "attention_statistics": Cost(layers * cache * z * (seen + 2 * count), layers * 2 * keys * z),
        "attention_weights": Cost(layers * cache * z * (seen + 2 * count) + weights, layers * 2 * keys * z),
        "attention_values": Cost(
            weights + layers * cache * (seen * e + memory) + layers * weight * count * (z + 2 * e),
            layers * 2 * (keys * e + count * memory),
        ),
        # The sum and the keys' products, which take the place of the memory's part of each value.
        "absorb": Cost(layers * (cache * count * (z + e) + 8 * sums), layers * 2 * count * sums),
        "gate": ffn,
        "linear_residual": residual,
        "head": Cost(weight * d * c.num_outputs, 2 * d * c.num_outputs),
    }


def _sizes(metadata: Metadata) -> tuple[GeckoConfig, int, int]:
    """The config, and bytes of an element of weight matrices and of caches."""
    weight = next(p.dtype for p in metadata.parameters if p.name == "embed.weight")
    cache = next(s.dtype for s in metadata.state if s.name == "layers.0.keys")
    sizes = [int(NUMPY_DTYPES[dtype].itemsize) for dtype in (weight, cache)]
    return GeckoConfig(**metadata.config), sizes[0], sizes[1]
