"""A model without weights: `Model` over an engine that draws what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gecko_mlc.formats.chat_config import ChatConfig
from gecko_mlc.formats.templates import Template
from gecko_mlc.runtime.model import Model
from gecko_mlc.runtime.text.tokenizer import Tokenizer
from support.tokens import END, ids, small_tokenizer

TEMPLATE = Template(
    name="small", roles={"user": "u", "assistant": "a"}, seps=[f"{END}\n"], stop_str=["\n\n"], system_template="x"
)


class FakeModel(Model):
    """A model with the small tokenizer or another; `template` is its conversation's."""

    def __init__(self, engine: Any, template: Template = TEMPLATE, tokenizer: Tokenizer | None = None) -> None:
        self.folder, self.engine, self._tokenizer = Path("fake"), engine, tokenizer or small_tokenizer()
        self.chat_config = ChatConfig(
            quantization="q0f32", config={}, vocab_size=300, conv_template=template, eos_token_id=ids(END)[0]
        )
