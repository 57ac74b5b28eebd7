"""Every config field through the compiled library, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.models import random_parameters, random_split, small_config
from support.reference import CONFIGS, reference_logits

from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.engine import Engine


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_field(name: str, engine: Callable[..., Engine]) -> None:
    config = small_config(**CONFIGS[name])
    parameters = random_parameters(config)
    size, rng = config.chunk_size, np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, 20 * size + 1).tolist()
    expected = reference_logits(config, parameters, tokens)
    ours = engine(config, parameters)
    tolerance = 2e-5 * max(1.0, np.abs(expected).max())
    for length in (size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 20 * size + 1):
        for split in ([length], random_split(rng, length, 2 * size)):
            ours.reset(0)
            start, parts = 0, []
            for piece in split:
                parts.append(ours.extend_logits(0, tokens[start : start + piece]))
                start += piece
            assert np.abs(np.concatenate(parts) - expected[:length]).max() < tolerance, split


@pytest.mark.parametrize(("scheme", "tolerance"), [("q0f16", 5e-3), ("q0bf16", 4e-2)])
def test_sixteen_bits(scheme: str, tolerance: float, engine: Callable[..., Engine]) -> None:
    """16-bit matrices and window, fp32 everywhere else: near the reference, and the same for any split."""
    config = small_config()
    parameters = random_parameters(config)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 5 * config.chunk_size + 3).tolist()
    expected = reference_logits(config, parameters, tokens)
    ours = engine(config, parameters, scheme)
    whole = ours.extend_logits(0, tokens)
    assert np.abs(whole - expected).max() < tolerance * np.abs(expected).max()
    ours.reset(0)
    single = np.concatenate([ours.extend_logits(0, [t]) for t in tokens])
    assert np.abs(single - whole).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])
def test_quantized_weights(scheme: str, engine: Callable[..., Engine]) -> None:
    """Near the reference with the numbers that the codes stand for, and the same for any split."""
    config = small_config()
    parameters, rng = random_parameters(config), np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, 5 * config.chunk_size + 3).tolist()
    group = quantization(scheme).group
    assert group is not None
    dequantized = {
        p.name: group.dequantize(*group.quantize(parameters[p.name]), p.shape[1]) if p.matrix else parameters[p.name]
        for p in config.parameters()
    }
    expected = reference_logits(config, dequantized, tokens)
    ours = engine(config, parameters, scheme)
    whole = ours.extend_logits(0, tokens)
    # Activations are rounded to bytes.
    assert np.abs(whole - expected).max() < 4e-2 * np.abs(expected).max()
    for split in ([1] * len(tokens), random_split(rng, len(tokens), 2 * config.chunk_size)):
        ours.reset(0)
        ends = np.cumsum(split)
        parts = [ours.extend_logits(0, tokens[end - n : end]) for n, end in zip(split, ends, strict=True)]
        assert np.abs(np.concatenate(parts) - whole).max() < 5e-3 * np.abs(expected).max()


def test_eight_bit_values(engine: Callable[..., Engine]) -> None:
    """Near the same weights with fp32 caches; logits and state are the same for any split."""
    config = small_config()
    parameters, rng = random_parameters(config), np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, 5 * config.chunk_size + 3).tolist()
    exact, ours = engine(config, parameters), engine(config, parameters, state="int8")
    expected, whole = exact.extend_logits(0, tokens), ours.extend_logits(0, tokens)
    assert 0 < np.abs(whole - expected).max() < 1e-2 * np.abs(expected).max()
    state = {spec.name: ours.read(spec.name, 0).astype(float) for spec in ours.metadata.state}
    for split in ([1] * len(tokens), random_split(rng, len(tokens), 2 * config.chunk_size)):
        ours.reset(0)
        ends = np.cumsum(split)
        parts = [ours.extend_logits(0, tokens[end - n : end]) for n, end in zip(split, ends, strict=True)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-3 * np.abs(whole).max())
        for name in state.keys() - {"token", "logits"}:
            # A value between two codes may become either.
            atol = 1 if name.endswith(".values") else 1e-3
            np.testing.assert_allclose(ours.read(name, 0), state[name], rtol=1e-3, atol=atol)
