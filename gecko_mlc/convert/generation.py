"""What a checkpoint's folder says of generating: its `generation_config.json`, which goes before `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gecko_mlc.formats.files import read_json, validated
from gecko_mlc.formats.sampling import MinP, Penalty, RepetitionPenalty, Temperature, TopK, TopP
from gecko_mlc.formats.token_ids import TokenId, TokenIds, check_ids

GENERATION_CONFIG = "generation_config.json"


class GenerationConfig(BaseModel):
    """The fields of either file that a chat config has too, with Hugging Face's names; null says nothing."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    bos_token_id: TokenId = None
    eos_token_id: TokenIds = None
    pad_token_id: TokenId = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


def read_generation(config: Path, vocab_size: int) -> dict[str, Any]:
    """Fields of a chat config that `generation_config.json` beside `config` says, or `config` itself.

    Not to sample is a temperature of 0. Raises `GeckoError` naming the file and the field for values of other types or
    out of range, and for ids that the vocabulary has not.
    """
    found: dict[str, Any] = {}
    for file in (config, config.parent / GENERATION_CONFIG):
        if file.exists():
            fields = validated(GenerationConfig, read_json(file), file)
            check_ids(fields, vocab_size, file)
            found |= fields.model_dump(exclude_none=True)
    if not found.pop("do_sample", True):
        found["temperature"] = 0.0
    return found
