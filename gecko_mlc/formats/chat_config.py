"""A model folder: `mlc-chat-config.json`, the tokenizer and the weights, in MLC's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, read_json, validated
from gecko_mlc.formats.templates import Template
from gecko_mlc.formats.weights import check_whole

CHAT_CONFIG = "mlc-chat-config.json"


class ChatConfig(BaseModel):
    """`mlc-chat-config.json`. -1 means that a limit is off: Gecko's context has none."""

    model_config = ConfigDict(populate_by_name=True, protected_namespaces=(), extra="ignore")

    version: str = "0.1.0"
    model_type: str = "gecko"
    quantization: str
    config: dict[str, Any] = Field(alias="model_config")
    vocab_size: int
    context_window_size: int = -1
    prefill_chunk_size: int = -1
    temperature: float = 0.8
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    tokenizer_files: list[str] = Field(default_factory=list)
    tokenizer_info: dict[str, Any] = Field(default_factory=dict)
    conv_template: Template
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an answer."""
        ids = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        return frozenset([i for i in ids if i is not None] + self.conv_template.stop_token_ids)


def read_chat_config(folder: Path) -> ChatConfig:
    """The folder's chat config. Raises `GeckoError` naming the field at fault, and for a folder that is not whole."""
    path = folder / CHAT_CONFIG
    if not folder.is_dir():
        raise GeckoError(f"{folder}: no such model folder")
    check_whole(folder)
    config = validated(ChatConfig, read_json(path), path)
    if config.model_type != "gecko":
        raise GeckoError(f"{path}: model_type is {config.model_type!r}, expected 'gecko'")
    return config


def write_chat_config(folder: Path, config: ChatConfig) -> None:
    """Write the folder's chat config, whole or not at all."""
    with atomic_write(folder / CHAT_CONFIG) as file:
        file.write(config.model_dump_json(by_alias=True, indent=2) + "\n")
