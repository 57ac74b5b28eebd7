"""The config: presets, the list of parameters, and messages with the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import Golden, small_config

from gecko_mlc.config import PRESETS, load_config, preset, validate_config
from gecko_mlc.reference.gecko import Gecko


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gecko-7b", 7_385_817_088),
        ("gecko-1b", 1_022_799_872),
        ("gecko-120m", 121_984_512),
        ("gecko-demo", 7_659_264),
    ],
)
def test_presets(name: str, parameters: int) -> None:
    assert preset(name).num_parameters() == parameters
    assert name in PRESETS


def test_7b_with_a_larger_vocabulary() -> None:
    assert validate_config({"vocab_size": 128256}, "x").num_parameters() == 8_174_346_240


def test_parameters_are_the_state_dict(golden: Golden) -> None:
    """Names and shapes agree with the reference's state_dict, buffers and a tied head left out."""
    listed = {p.name: p.shape for p in golden.config.parameters()}
    expected = {k: v.shape for k, v in golden.parameters.items() if ".prior_" not in k and k != "rope.freqs"}
    if golden.config.share_emb:
        del expected["output.output.weight"]
    assert listed == expected
    model = dict(Gecko(golden.config).named_parameters())
    assert {name: tuple(p.shape) for name, p in model.items()} == listed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "z_dim=16 must be a multiple of num_heads=3"),
        ({"value_dim": 33}, "value_dim=33 must be a multiple of num_heads=2"),
        ({"z_dim": 10}, "10/2 = 5 must be even"),
        ({"timenorm_num_groups": 7}, "timenorm_num_groups=7 must divide model_dim=24"),
        ({"timenorm_num_groups": 24}, "be smaller"),
        ({"layernorm_num_groups": 5}, "layernorm_num_groups=5 must divide model_dim=24"),
        ({"num_rope_heads": 3}, "num_rope_heads=3 must be at most num_heads=2"),
        ({"share_emb": True, "output_size": 50}, "vocab_size=53 rows, but output_size=50"),
        ({"num_heads": 0}, "num_heads: Input should be greater than or equal to 1, got 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"vocab_size": "many"}, "vocab_size: .*, got 'many'"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"timenorm_beta1": 1.0}, "timenorm_beta1"),
        ({"chunk_sise": 8}, "chunk_sise: Extra inputs"),
        ({"output_size": 0}, "output_size=0"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    fields = {**small_config().model_dump(), **changes}
    with pytest.raises(ValueError, match=message):
        validate_config(fields, "config.json")


def test_load_config_takes_the_vocabulary_from_the_tokenizer(tmp_path: Path) -> None:
    fields = {k: v for k, v in small_config().model_dump().items() if k != "vocab_size"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**fields, "dropout": 0.1, "init_mode": "he"}))
    assert load_config(path, 53) == small_config()
    with pytest.raises(ValueError, match="vocab_size is missing"):
        load_config(path)


def test_reference_agrees_with_the_golden_vectors(golden: Golden) -> None:
    """In float64, in one call and in pieces."""
    model = Gecko(golden.config).double()
    model.load_state_dict({k: torch.from_numpy(v).double() for k, v in golden.parameters.items()})
    tokens = torch.tensor([golden.tokens])
    with torch.no_grad():
        whole, _ = model(tokens)
        state, parts = None, []
        for piece in tokens.split(5, 1):
            logits, state = model(piece, state)
            parts.append(logits)
    assert (whole[0] - torch.from_numpy(golden.logits)).abs().max() < 1e-6
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12
