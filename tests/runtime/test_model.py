"""A model over a fake engine: what its streams begin with, and how its chat config draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokenizer_kinds import BOS, KINDS, tokenizer

from gecko_mlc.formats.chat_config import ChatConfig
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.templates import TEMPLATES, Template
from gecko_mlc.runtime.conversation import Conversation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.model import read_tokenizer


def model(kind: str, bos: bool, template: Template = TEMPLATES["LM"]) -> FakeModel:
    """A model whose config says what its streams begin with, or says nothing."""
    made = FakeModel(FakeEngine(), template, tokenizer(kind))
    (first,) = made.tokenizer.encode(BOS, special=True)
    made.chat_config = made.chat_config.model_copy(update={"bos_token_id": first if bos else None})
    return made


# The config says it, the tokenizer adds it, or a template's text begins with it: whoever does, it is there once.
@pytest.mark.parametrize("kind", ["llama-3", "llama-2", "unigram", "wordpiece"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_stream_begins_once(kind: str, bos: bool, begun: bool) -> None:
    template = Template(name="x", system_template=f"{BOS}{{system_message}}" if begun else "", system_message="the")
    made = model(kind, bos, template)
    (first,) = made.tokenizer.encode(BOS, special=True)
    assert made.beginning() == [first]
    prompt = f"{BOS}Hello" if begun else "Hello"
    ids = made.encode_prompt(prompt, special=begun)
    assert ids == [first, *made.tokenizer.encode("Hello")]
    "".join(made.generate(prompt, GenerationOptions(max_tokens=1), special=begun))
    assert list(made.engine.states[0].seen) == ids
    "".join(Conversation(made, 0).say("Hello", GenerationOptions(max_tokens=1)))
    assert made.engine.states[0].seen.count(first) == 1
    assert made.engine.states[0].seen[0] == first


def test_special_tokens_in_a_prompt_are_text_unless_asked_for() -> None:
    made = model("llama-3", bos=True)
    (first,) = made.tokenizer.encode(BOS, special=True)
    assert made.tokenizer.decode(made.encode_prompt(f"{BOS}a{BOS}")) == f"{BOS}a{BOS}"
    assert made.encode_prompt(f"{BOS}a{BOS}", special=True) == [first, *made.tokenizer.encode("a"), first]
    assert made.encode_prompt(f"a{BOS}", special=True)[0] == first


@pytest.mark.parametrize("kind", ["llama-3", "llama-2", "metaspace first", "word ends"])
def test_a_continuation_goes_on_where_the_prompt_ends(kind: str) -> None:
    """With its blank, which a decoder leaves out at the beginning of a text."""
    made = model(kind, bos=False)
    prompt = made.encode_prompt("the king")
    script = made.encode_prompt("the king is dead")[len(prompt) :]
    made.engine.script = script
    generation = made.generate("the king", GenerationOptions(max_tokens=len(script)))
    assert "the king" + "".join(generation) == "the king is dead"


@pytest.mark.parametrize("wrong", [-1, 10**30, 1.5, "a", None])
def test_what_is_no_id_is_left_to_the_engine_to_refuse(wrong: Any) -> None:
    made = model("llama-3", bos=True)
    "".join(made.generate_ids([5, wrong], GenerationOptions(max_tokens=1)))
    assert made.engine.states[0].seen == (5, wrong)


def test_sampling_is_as_the_chat_config_says() -> None:
    made = model("llama-3", bos=True)
    wanted = {"temperature": 0.0, "top_k": 20, "min_p": 0.05, "top_p": 0.5, "presence_penalty": 1.0}
    made.chat_config = made.chat_config.model_copy(update=wanted)
    assert made.options().sampling.model_dump() == {
        **wanted,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
    }


def test_a_tokenizer_is_checked_without_a_library(tmp_path: Path) -> None:
    config = ChatConfig(quantization="q0f32", config={}, vocab_size=1000, conv_template=TEMPLATES["LM"])
    with pytest.raises(GeckoError, match="no such file; text needs the model's tokenizer there"):
        read_tokenizer(tmp_path, config)
    KINDS["llama-3"]().save(str(tmp_path / "tokenizer.json"))
    read_tokenizer(tmp_path, config)
    with pytest.raises(GeckoError, match=r"largest id is \d+, but the model's vocabulary is 10$"):
        read_tokenizer(tmp_path, config.model_copy(update={"vocab_size": 10}))
    with pytest.raises(GeckoError, match=r"tokenizer_files: there is no vocab\.json in the folder"):
        read_tokenizer(tmp_path, config.model_copy(update={"tokenizer_files": ["tokenizer.json", "vocab.json"]}))
