"""A GPU's functions, played on a CPU, against the golden vectors: logits and state, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest
from support.emulated import EmulatedLibrary
from support.golden import check_state, feed
from support.models import in_memory, load_golden, random_parameters, random_split, small_config, with_derived
from support.reference import CONFIGS, reference_logits

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.engine import Engine

# Widths of whole vectors of codes: kernels round the rows that they make.
WIDE = {"model_dim": 128, "value_dim": 128, "ffn_hidden_dim": 128, "timenorm_num_groups": 4}
# Every field of `test_model.CONFIGS`, in as few configs as they go into; by the scheme and the state's dtype.
COMBINED = {
    ("q0f32", None): (
        "no_swiglu",
        "two_hop_residual",
        "rescale_nffn",
        "scaled_shared_embedding",
        "partial_rope",
        "norm_groups",
    ),
    ("q0f16", None): ("odd_sizes", "not_affine", "other_outputs", "no_rope"),
    ("q0bf16", None): ("not_affine", "no_swiglu", "one_head"),
    ("q0f32", "int8"): ("odd_sizes",),
    ("q4f32_1", None): ("partial_rope", "no_swiglu"),
    ("q4f16_1", None): ("scaled_shared_embedding",),
    ("q8f16_1", None): ("not_affine", "no_swiglu", "wide"),
    ("q3f16_1", "int8"): ("norm_groups",),
}


def dequantized(config: GeckoConfig, parameters: dict[str, np.ndarray], scheme: str) -> dict[str, np.ndarray]:
    """The parameters, matrices as what their codes stand for."""
    if (group := quantization(scheme).group) is None:
        return parameters
    return parameters | {
        p.name: group.dequantize(*group.quantize(parameters[p.name]), p.shape[1])
        for p in config.parameters()
        if p.matrix
    }


def engine_of(
    config: GeckoConfig, parameters: dict[str, np.ndarray], scheme: str, slots: int = 1, state_dtype: str | None = None
) -> Engine:
    library = EmulatedLibrary(config, scheme, slots, state_dtype)
    values = with_derived(config, parameters)
    return Engine(
        library,  # type: ignore[arg-type]
        [in_memory(spec, values[spec.name]) for spec in library.metadata.parameters],
    )


@pytest.mark.parametrize("name", ["public_a", "public_b"])
def test_golden(name: str) -> None:
    golden = load_golden(name)
    engine = engine_of(golden.config, golden.parameters, "q0f32")
    split = random_split(np.random.default_rng(0), len(golden.tokens), golden.config.chunk_size)
    assert np.abs(feed(engine, golden.tokens, split) - golden.logits).max() < 2e-5
    check_state(engine, golden)


@pytest.mark.parametrize(("scheme", "state_dtype"), COMBINED)
def test_every_config_field(scheme: str, state_dtype: str | None) -> None:
    names = COMBINED[scheme, state_dtype]
    changes = {field: value for name in names for field, value in (CONFIGS | {"wide": WIDE})[name].items()}
    config = small_config(**changes)
    parameters, rng = random_parameters(config), np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, 5 * config.chunk_size + 1).tolist()
    expected = reference_logits(config, dequantized(config, parameters, scheme), tokens)
    engine = engine_of(config, parameters, scheme, state_dtype=state_dtype)
    roundings = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
    rounding = roundings[quantization(scheme).model_dtype] if state_dtype is None else 1e-2
    if scheme == "q4f32_1":
        # Single rows are integers of two bytes beside codes.
        rounding = 1e-4
    tolerance = rounding * np.abs(expected).max()
    for split in ([len(tokens)], random_split(rng, len(tokens), 2 * config.chunk_size)):
        assert np.abs(feed(engine, tokens, split) - expected).max() < tolerance, split


def test_two_slots_of_rounded_weights() -> None:
    """Two streams in turn, at different phases, are each what it is alone; bfloat16 is near float64."""
    golden = load_golden("public_a")
    engine, tokens = engine_of(golden.config, golden.parameters, "q0bf16", slots=2), golden.tokens
    alone = feed(engine, tokens, [len(tokens)])
    assert np.abs(alone - golden.logits).max() < 0.05 * np.abs(golden.logits).max()
    engine.reset(1)
    engine.extend(1, tokens[:20])
    engine.reset(0)
    engine.extend(0, tokens[:33])
    for first, second in zip(tokens[33:50], tokens[20:37], strict=True):
        engine.set_token(0, first)
        engine.set_token(1, second)
        engine.decode([0, 1])
    for slot, position in ((0, 50), (1, 37)):
        assert engine.positions[slot] == position
        np.testing.assert_allclose(engine.logits(slot), alone[position - 1], atol=0.03 * np.abs(alone).max())
    engine.copy(1, 0)
    np.testing.assert_array_equal(engine.logits(0), engine.logits(1))
