"""A model folder: `mlc-chat-config.json`, the tokenizer and the weights, in MLC's layout."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, is_plain_name, read_json, validated
from gecko_mlc.formats.sampling import MinP, Penalty, RepetitionPenalty, Temperature, TopK, TopP
from gecko_mlc.formats.templates import Short, Template
from gecko_mlc.formats.token_ids import TokenId, TokenIds, check_ids
from gecko_mlc.formats.weights import check_whole

CHAT_CONFIG = "mlc-chat-config.json"


class ChatConfig(BaseModel):
    """`mlc-chat-config.json`. -1 means that a limit is off: Gecko's context has none."""

    model_config = ConfigDict(
        populate_by_name=True, protected_namespaces=(), extra="ignore", strict=True, allow_inf_nan=False
    )

    version: Short = "0.1.0"
    model_type: Short = "gecko"
    quantization: Short
    config: dict[str, Any] = Field(alias="model_config")
    vocab_size: int = Field(ge=1, le=2**24)
    context_window_size: int = -1
    prefill_chunk_size: int = -1
    temperature: Temperature = 0.8
    top_k: TopK = 0
    top_p: TopP = 0.95
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    tokenizer_files: list[Short] = Field(default_factory=list, max_length=64)
    tokenizer_info: dict[str, Any] = Field(default_factory=dict)
    conv_template: Template
    bos_token_id: TokenId = None
    eos_token_id: TokenIds = None
    pad_token_id: TokenId = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields

    @field_validator("tokenizer_files")
    @classmethod
    def _in_the_folder(cls, names: list[str]) -> list[str]:
        if not all(map(is_plain_name, names)):
            raise ValueError("should be names of files in the folder")
        return names

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
        raise GeckoError(f"{path}: model_type is {config.model_type[:80]!r}, expected 'gecko'")
    rows = config.config.get("vocab_size", config.vocab_size)
    if rows != config.vocab_size:
        raise GeckoError(f"{path}: vocab_size is {config.vocab_size}, but that of model_config {reprlib.repr(rows)}")
    check_ids(config, config.vocab_size, path)
    return config


def write_chat_config(folder: Path, config: ChatConfig) -> None:
    """Write the folder's chat config, whole or not at all."""
    with atomic_write(folder / CHAT_CONFIG) as file:
        file.write(config.model_dump_json(by_alias=True, indent=2) + "\n")
