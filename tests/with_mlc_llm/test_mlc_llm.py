"""Gecko in an installed mlc_llm, by `make test-mlc-llm`: PyPI has none, so these tests are a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from support.checkpoints import without_weights
from support.models import small_config

from gecko_mlc.convert.chat_config import find_config
from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.integrations.mlc_llm import register


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return without_weights(tmp_path)


def test_mlc_knows_gecko_and_its_schemes() -> None:
    from mlc_llm.conversation_template import ConvTemplateRegistry
    from mlc_llm.model import MODELS
    from mlc_llm.quantization import QUANTIZATION

    theirs = dict(QUANTIZATION)
    register()
    register()
    assert MODELS["gecko"].name == "gecko"
    assert set(QUANTIZATIONS) <= set(QUANTIZATION)
    assert all(QUANTIZATION[name] is scheme for name, scheme in theirs.items())
    for name, ours in QUANTIZATIONS.items():
        assert QUANTIZATION[name].model_dtype == ours.model_dtype
        if ours.group is not None:
            assert QUANTIZATION[name].group_size == ours.group.group_size
            assert QUANTIZATION[name].num_elem_per_storage == ours.group.codes_per_word
            assert QUANTIZATION[name].max_int_value == ours.group.largest
    template = ConvTemplateRegistry.get_conv_template("gecko_play")
    assert template is not None
    assert template.stop_token_ids == []
    assert template.roles["user"] == "Ham."


@pytest.mark.parametrize("name", [name for name, scheme in QUANTIZATIONS.items() if scheme.group is not None])
def test_mlc_quantizes_as_we_do(name: str) -> None:
    from mlc_llm.quantization import QUANTIZATION

    register()
    scheme = QUANTIZATIONS[name]
    assert scheme.group is not None
    weight = np.random.default_rng(0).normal(size=(24, 200)).astype(scheme.model_dtype)
    weight[3] = 0.5 * weight[4]
    with tvm.target.Target("llvm"):
        q_weight, q_scale = QUANTIZATION[name].quantize_weight(tvm.runtime.tensor(weight))
    codes, scales = scheme.group.quantize(weight)
    assert np.array_equal(q_weight.numpy(), codes)
    assert np.array_equal(q_scale.numpy(), scales)


def test_mlc_writes_a_config_that_is_ours(checkpoint: Path, tmp_path: Path) -> None:
    from mlc_llm.cli import gen_config

    register()
    folder = tmp_path / "folder"
    options = ["--quantization", "q8f16_1", "--conv-template", "gecko_play", "-o", str(folder)]
    gen_config.main([str(checkpoint), *options])
    written = read_chat_config(folder)
    assert (written.quantization, written.bos_token_id, written.eos_token_id) == ("q8f16_1", 3, 0)
    assert written.stop_tokens() == {0}
    assert written.config == small_config(vocab_size=4096).model_dump()
    assert written.tokenizer_files == ["tokenizer.json"]
    assert find_config(str(folder)) == small_config(vocab_size=4096)


def test_mlc_recognises_a_folder_and_says_what_is_next(checkpoint: Path, tmp_path: Path) -> None:
    from mlc_llm.cli import compile, convert_weight
    from mlc_llm.interface.jit import jit
    from mlc_llm.support.auto_config import detect_mlc_chat_config, detect_model_type, detect_quantization

    from gecko_mlc.convert.chat_config import plan_files
    from gecko_mlc.formats.quantization import quantization

    register()
    folder = tmp_path / "folder"
    plan_files(checkpoint, quantization("q4f16_1")).write(folder)
    path = detect_mlc_chat_config(str(folder))
    assert path == folder / CHAT_CONFIG
    assert detect_model_type("auto", path).name == "gecko"
    assert detect_quantization(None, path).name == "q4f16_1"
    # What it looks for before it converts.
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    calls: list[tuple[str, Any]] = [
        ("gecko-mlc convert_weight", lambda: convert_weight.main([*weights, "-o", str(folder)])),
        ("gecko-mlc compile", lambda: compile.main([str(folder), "--device", "llvm", "-o", str(tmp_path / "x.so")])),
        ("gecko-mlc chat", lambda: jit(folder, {}, "llvm")),
    ]
    weights = [str(checkpoint), "--quantization", "q4f16_1", "--device", "cpu"]
    for message, call in calls:
        with pytest.raises(GeckoError, match=message):
            call()
