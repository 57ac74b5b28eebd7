"""Gecko in mlc_llm's registries, which stand in for it; tests/with_mlc_llm has the tests of mlc_llm itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.checkpoints import without_weights
from support.models import small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.integrations.mlc_llm import ModelConfig, refuse_weights, register


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return without_weights(tmp_path)


def test_the_config_is_what_mlc_asks_for(checkpoint: Path) -> None:
    config = ModelConfig.from_file(checkpoint / "config.json")
    assert config.vocab_size == 4096
    assert (config.prefill_chunk_size, config.tensor_parallel_shards) == (-1, 1)
    assert config.asdict() == small_config(vocab_size=4096).model_dump()
    assert ModelConfig.from_dict(config.asdict()).asdict() == config.asdict()


def test_special_tokens_are_not_left_to_mlc(checkpoint: Path) -> None:
    """It would fill in Llama's. `generation_config.json` may say them, too."""
    path = checkpoint / "config.json"
    fields = json.loads(path.read_text())
    del fields["bos_token_id"]
    path.write_text(json.dumps(fields))
    with pytest.raises(GeckoError, match="bos_token_id missing, where mlc_llm would write Llama's"):
        ModelConfig.from_file(path)
    (checkpoint / "generation_config.json").write_text('{"bos_token_id": 3}')
    ModelConfig.from_file(path)


def test_what_mlc_cannot_do_names_what_can() -> None:
    with pytest.raises(GeckoError, match="`gecko-mlc compile`, `gecko-mlc chat`"):
        ModelConfig.from_dict({**small_config().model_dump(), "conv_template": {}})
    with pytest.raises(GeckoError, match="`gecko-mlc convert_weight`"):
        refuse_weights()
    with pytest.raises(GeckoError, match="must be a multiple of num_heads=5"):
        ModelConfig.from_dict({**small_config().model_dump(), "num_heads": 5})


def test_without_mlc_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlc_llm", None)
    with pytest.raises(GeckoError, match="there is no mlc_llm here"):
        register()


class Fields(SimpleNamespace):
    """A class of mlc_llm's that keeps what it is given."""


@pytest.fixture
def mlc(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Registries in place of mlc_llm's: `models`, `schemes`, `templates` by name, and `choices` of templates."""
    schemes = {"q0f16": Fields(kind="no-quant"), "q4f16_1": Fields(kind="group-quant")}
    mlc = SimpleNamespace(models={"llama": Fields()}, schemes=schemes, templates={}, choices=set())
    registry = SimpleNamespace(
        register_conv_template=lambda template, override: mlc.templates.update({template.name: template})
    )
    modules: dict[str, dict[str, Any]] = {
        "mlc_llm": {},
        "mlc_llm.conversation_template": {"ConvTemplateRegistry": registry},
        "mlc_llm.interface": {"gen_config": SimpleNamespace(CONV_TEMPLATES=mlc.choices)},
        "mlc_llm.model": {"MODELS": mlc.models, "Model": Fields},
        "mlc_llm.protocol": {},
        "mlc_llm.protocol.conversation_protocol": {"Conversation": Fields},
        "mlc_llm.quantization": {"QUANTIZATION": mlc.schemes, "GroupQuantize": Fields},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return mlc


def test_what_is_registered(mlc: SimpleNamespace) -> None:
    """Gecko, schemes that mlc_llm has not, and templates; what is there stays, and a second time changes nothing."""
    theirs = dict(mlc.schemes)
    register()
    gecko = mlc.models["gecko"]
    register()
    assert mlc.models["gecko"] is gecko
    assert gecko.config is ModelConfig
    assert set(gecko.quantize) == {"no-quant", "group-quant"}
    for refused in (gecko.model, *gecko.source.values(), *gecko.quantize.values()):
        with pytest.raises(GeckoError, match="convert_weight"):
            refused()
    assert all(mlc.schemes[name] is scheme for name, scheme in theirs.items())
    q8, group = mlc.schemes["q8f16_1"], QUANTIZATIONS["q8f16_1"].group
    assert group is not None
    assert (q8.group_size, q8.quantize_dtype, q8.model_dtype) == (group.group_size, "int8", "float16")
    assert mlc.templates["gecko_play"].roles["user"] == "Ham."
    assert mlc.choices == set(mlc.templates)
