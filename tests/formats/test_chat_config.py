"""A chat config that is wrong is refused at once, by its file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gecko_mlc.formats.chat_config import ChatConfig, read_chat_config, write_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.templates import TEMPLATES

HUGE = "x" * 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ChatConfig(
        quantization="q0f32", config={"vocab_size": 128}, vocab_size=128, conv_template=TEMPLATES["chatml"]
    )
    write_chat_config(tmp_path, config)
    return tmp_path


def edit(folder: Path, changes: dict[str, Any]) -> Path:
    """Change fields, those of parts by names with dots."""
    path = folder / "mlc-chat-config.json"
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        *parts, last = name.split(".")
        inner = fields
        for part in parts:
            inner = inner[part]
        inner[last] = value
    path.write_text(json.dumps(fields).replace('"1e999"', "1e999"))
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, bad) for name in ("bos_token_id", "eos_token_id", "pad_token_id") for bad in (-1, 128, 10**9, 10**30)),
        *(("eos_token_id", bad) for bad in (True, 2.0, "2", [2, -1], [2, 128], [2, "3"], [[2]], {"id": 2})),
        *(("bos_token_id", bad) for bad in (True, 1.0, "1", [1])),
        *(("conv_template.stop_token_ids", bad) for bad in ([-5], [128], [True], ["2"], 2)),
        *(
            (name, bad)
            for name in ("temperature", "top_p", "min_p")
            for bad in (-1, "0.5", True, float("nan"), "1e999")
        ),
        *(("temperature", bad) for bad in (1e9, float("inf"), [0.5])),
        *(("top_k", bad) for bad in (-1, 2.5, "40", 2**31)),
        *(("repetition_penalty", bad) for bad in (0, -1, float("-inf"))),
        *((name, bad) for name in ("presence_penalty", "frequency_penalty") for bad in (1000, "1e999")),
        *(("vocab_size", bad) for bad in (5, 0, -1, 128.5, "128", 2**40)),
        *(("tokenizer_files", bad) for bad in (["../tokenizer.json"], ["/etc/passwd"], ["a\0b"], [""], [1], "x")),
        *(("tokenizer_files", bad) for bad in (["x" * 300], ["tokenizer.json"] * 1000)),
        *(("model_type", bad) for bad in ("llama", HUGE, 1)),
        ("conv_template", None),
        ("conv_template", "chatml"),
        ("conv_template.name", None),
        *(("conv_template.roles", bad) for bad in ({}, {"user": ""}, {"user": "", "assistant": 1}, [], "user")),
        *(("conv_template.roles", {"user": "", "assistant": "", other: ""}) for other in (HUGE,)),
        *(("conv_template.seps", bad) for bad in ([], ["a", "b", "c"], "a", [None], [HUGE])),
        *((f"conv_template.{name}", HUGE) for name in ("name", "role_content_sep", "role_empty_sep", "system_message")),
        *(("conv_template.stop_str", bad) for bad in ("</s>", [HUGE], ["x"] * 10**4)),
        ("conv_template.roles.user", HUGE),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_wrong_field_is_named(field: str, value: Any, folder: Path) -> None:
    path = edit(folder, {field: value})
    with pytest.raises(GeckoError) as error:
        read_chat_config(folder)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert field.rpartition(".")[2] in message
    assert len(message) < 500


def test_a_vocabulary_unlike_the_models(folder: Path) -> None:
    edit(folder, {"vocab_size": 5})
    with pytest.raises(GeckoError, match="vocab_size is 5, but that of model_config 128"):
        read_chat_config(folder)


def test_null_is_the_default(folder: Path) -> None:
    """As MLC writes what it does not know."""
    edit(folder, {"temperature": None, "top_k": None, "bos_token_id": None, "eos_token_id": None})
    config = read_chat_config(folder)
    assert (config.temperature, config.top_k, config.bos_token_id, config.eos_token_id) == (0.8, 0, None, None)


def test_every_template_that_comes_along_is_right(folder: Path) -> None:
    for template in TEMPLATES.values():
        edit(folder, {"conv_template": template.model_dump()})
        assert read_chat_config(folder).conv_template == template


def test_several_ends_of_text(folder: Path) -> None:
    edit(folder, {"eos_token_id": [2, 7], "conv_template.stop_token_ids": [9]})
    assert read_chat_config(folder).stop_tokens() == {2, 7, 9}
