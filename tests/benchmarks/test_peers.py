"""The benchmarks' PyTorch steps compute what the reference does, through chunks and for all of the config's forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peers.pytorch_compiled import CompiledStep
from peers.pytorch_eager import Step
from support.models import random_parameters, small_config

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference.gecko import Gecko

FORMS: list[dict[str, Any]] = [
    {},
    {"swiglu": False, "share_emb": True, "scale_emb": True, "num_rope_heads": 1},
    {"norm_affine": False, "two_hop_residual": True, "rescale_nffn": True, "layernorm_num_groups": 2},
]


def model_of(config: GeckoConfig) -> Gecko:
    model = Gecko(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in random_parameters(config).items()})
    return model


def forced(step: CompiledStep, tokens: list[int]) -> np.ndarray:
    """The logits of all tokens."""
    rows = []
    for token in tokens:
        step.token.fill_(token)
        step()
        rows.append(step.logits.clone())
        if int(step.position[1]) == step.config.chunk_size:
            step.end_chunk()
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("form", FORMS)
def test_logits(form: dict[str, Any]) -> None:
    config = small_config(**form)
    model = model_of(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 4 * config.chunk_size + 3).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens]))[0][0].numpy()
    eager = Step(model)
    np.testing.assert_allclose(torch.stack([eager(token) for token in tokens]).numpy(), expected, atol=2e-4)
    step = CompiledStep(config, {name: p.detach() for name, p in model.named_parameters()})
    np.testing.assert_allclose(forced(step, tokens), expected, atol=2e-4)


def test_one_compiled_function_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as a whole and once, in a GPU's dtypes."""
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    config = small_config(num_layers=3)
    parameters = {name: p.detach() for name, p in model_of(config).named_parameters()}
    matrices = {p.name for p in config.parameters() if p.matrix}
    rounded = {name: value.bfloat16() if name in matrices else value for name, value in parameters.items()}
    plain = CompiledStep(config, parameters)
    compiled = CompiledStep(config, rounded, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    tokens = list(range(config.chunk_size + 1))
    expected = forced(plain, tokens)
    error = forced(compiled, tokens) - expected
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)


def test_eager_step_in_bfloat16() -> None:
    config = small_config()
    tokens = torch.tensor([list(range(12))])
    model = model_of(config)
    with torch.no_grad():
        expected = model(tokens)[0][0, -1]
    step = Step(model.bfloat16())
    logits = [step(token) for token in tokens[0].tolist()][-1]
    assert logits.dtype is torch.bfloat16
    assert float((logits.float() - expected).norm() / expected.norm()) < 0.2
