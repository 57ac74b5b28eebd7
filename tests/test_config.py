"""The config: presets, the list of parameters, and messages with the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import Golden, small_config

from gecko_mlc.config import PRESETS, load_config, preset, validate_config
from gecko_mlc.convert.chat_config import plan_files
from gecko_mlc.formats.quantization import quantization
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
        ({"chunk_sise": 8}, "chunk_sise: unknown field, .* is it chunk_size"),
        ({"output_size": 0}, "output_size=0"),
        ({"num_layers": 6.5}, "num_layers: .*, got 6.5"),
        ({"num_layers": "6"}, "num_layers: .*, got '6'"),
        ({"num_layers": True}, "num_layers: .*, got True"),
        ({"swiglu": "false"}, "swiglu: .*, got 'false'"),
        ({"rope_base": "500000"}, "rope_base: .*, got '500000'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: unknown field, .* is it norm_eps"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: unknown field, and it may change"),
        ({"share_emb": False, "tie_word_embeddings": True}, "share_emb=False and tie_word_embeddings=True"),
        ({"num_layers": 4096, "model_dim": 2**24, "timenorm_num_groups": 2}, r"[\d,]{20,} bytes in float32"),
        ({"chunk_size": 2**20, "value_dim": 2**23}, r"the state is [\d,]{18,} bytes in float32"),
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


THEIRS = {
    "_name_or_path": "me/gecko",
    "auto_map": {},
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "is_encoder_decoder": False,
    "max_position_embeddings": 4096,
    "num_beams": 1,
    "pruned_heads": {},
    "return_dict": True,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


@pytest.mark.parametrize("vocab_size", [{}, {"vocab_size": None}, {"vocab_size": -1}])
def test_what_hugging_face_writes_beside_the_models_fields(vocab_size: dict[str, Any], tmp_path: Path) -> None:
    """Nothing of it changes the model, a size may have a point, and `tie_word_embeddings` is `share_emb`."""
    fields = {k: float(v) if type(v) is int else v for k, v in small_config(share_emb=True).model_dump().items()}
    del fields["vocab_size"], fields["share_emb"]
    used = {"eos_token_id": 0, "temperature": 0.5, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({**THEIRS, **fields, **used, **vocab_size}))
    assert load_config(tmp_path / "config.json", 53) == small_config(share_emb=True)


def test_what_is_ignored_is_named_once(tmp_path: Path) -> None:
    used = {"eos_token_id": 0, "temperature": 0.5}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**THEIRS, **used, **small_config().model_dump()}))
    said: list[str] = []
    plan_files(path, quantization("q0f16"), say=said.append)
    assert said == [f"{path}: ignored {', '.join(THEIRS)}"]


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
