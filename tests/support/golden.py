"""Golden vectors: an engine fed with them, and its state against theirs."""

from __future__ import annotations

import numpy as np

from gecko_mlc.runtime.engine import Engine
from support.models import Golden

# Of the maximum absolute difference to float64; the specification's ceiling is 2e-4.
LOGITS = 2e-5


def feed(engine: Engine, tokens: list[int], lengths: list[int]) -> np.ndarray:
    engine.reset(0)
    parts, start = [], 0
    for length in lengths:
        parts.append(engine.extend_logits(0, tokens[start : start + length]))
        start += length
    return np.concatenate(parts)


def check_state(engine: Engine, golden: Golden) -> None:
    """The final state against the reference's cache."""
    config, t = golden.config, len(golden.tokens)
    chunk, offset = divmod(t, config.chunk_size)
    for i in range(config.num_layers):
        saved = {k: golden.tensors[f"state.layers.{i}.{k}"] for k in ("memory", "log_norm", "v", "awm_k")}
        np.testing.assert_allclose(engine.read(f"layers.{i}.memory", 0), saved["memory"][0], atol=2e-5)
        np.testing.assert_allclose(engine.read(f"layers.{i}.log_norm", 0), saved["log_norm"][0], atol=2e-5)
        ema = engine.read(f"layers.{i}.ema", 0).transpose(2, 1, 0)
        expected = golden.tensors[f"state.layers.{i}.cema_h"][0]
        np.testing.assert_allclose(ema, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))
        check_moments(engine, golden, f"layers.{i}.", f"state.layers.{i}.")
        # The window: the previous chunk whole, then this one so far.
        for name, tensor in (("values", saved["v"][0]), ("memory_keys", saved["awm_k"][0].swapaxes(0, 1))):
            buffers = engine.read(f"layers.{i}.{name}", 0)
            window = np.concatenate([buffers[(chunk + 1) % 2], buffers[chunk % 2][:offset]])
            np.testing.assert_allclose(window, tensor.reshape(window.shape), atol=2e-5)
    check_moments(engine, golden, "final_", "state.final.")
    assert engine.read("position", 0).tolist() == [chunk, offset]


def check_moments(engine: Engine, golden: Golden, ours: str, theirs: str) -> None:
    config, t = golden.config, len(golden.tokens)
    for name, beta in (("mean", config.timenorm_beta1), ("var", config.timenorm_beta2)):
        # The reference keeps moments without their bias correction.
        corrected = golden.tensors[f"{theirs}tn_{name}"][0] / (1 - beta**t)
        np.testing.assert_allclose(engine.read(f"{ours}norm_{name}", 0), corrected, atol=2e-5)
