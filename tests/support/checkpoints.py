"""Checkpoints on disk."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from support.models import small_config

TOKENS = {"bos_token_id": 3, "eos_token_id": 0}


def without_weights(folder: Path) -> Path:
    """A checkpoint's folder with its config and the demo's tokenizer."""
    fields = {**small_config(vocab_size=4096).model_dump(), "model_type": "gecko", **TOKENS}
    (folder / "config.json").write_text(json.dumps(fields))
    shipped = resources.files("gecko_mlc.demo") / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(shipped.read_bytes())
    return folder
