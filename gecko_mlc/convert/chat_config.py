"""A model folder's `mlc-chat-config.json` and tokenizer files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from gecko_mlc import __version__
from gecko_mlc.config import PRESETS, GeckoConfig, ignored_fields, load_config, preset, validate_config
from gecko_mlc.convert.generation import GenerationConfig, read_generation
from gecko_mlc.convert.shards import Say
from gecko_mlc.formats.chat_config import CHAT_CONFIG, ChatConfig, read_chat_config, write_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, read_json
from gecko_mlc.formats.quantization import Quantization
from gecko_mlc.formats.templates import TEMPLATES
from gecko_mlc.formats.weights import check_whole
from gecko_mlc.runtime.text.tokenizer import TOKENIZER, Tokenizer

TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def read_model_config(config_or_folder: Path, say: Say = lambda text: None) -> GeckoConfig:
    """The config in a `config.json`, or in a folder that holds one beside its tokenizer.

    Tells `say` of fields that are ignored. Raises `GeckoError` when it is missing, and with the numbers when it is
    invalid.
    """
    path = _config_path(config_or_folder)
    tokenizer = path.parent / TOKENIZER
    try:
        config = load_config(path, Tokenizer(path.parent).size if tokenizer.is_file() else None)
    except ValueError as error:
        raise GeckoError(str(error)) from None
    if ignored := [name for name in ignored_fields(read_json(path)) if name not in GenerationConfig.model_fields]:
        say(f"{path}: ignored {', '.join(ignored)}")
    return config


def find_config(name: str, say: Say = lambda text: None) -> GeckoConfig:
    """The config of a preset's name, a `config.json`, a checkpoint's folder or a model folder.

    Tells `say` of fields that are ignored.
    """
    path = Path(name)
    check_whole(path)
    if path.is_dir() and (path / CHAT_CONFIG).is_file():
        try:
            return validate_config(read_chat_config(path).config, str(path / CHAT_CONFIG))
        except ValueError as error:
            raise GeckoError(str(error)) from None
    if path.exists():
        return read_model_config(path, say)
    if name in PRESETS:
        return preset(name)
    raise GeckoError(f"{name}: no such file or folder, and no preset ({', '.join(PRESETS)})")


class ModelFiles(NamedTuple):
    """What a model folder has besides weights and libraries: the model's config, in the chat config, and the
    tokenizer's files in `source`."""

    config: GeckoConfig
    chat_config: ChatConfig
    source: Path

    def write(self, output: Path) -> None:
        """Write `mlc-chat-config.json` into the folder `output`, and copy the tokenizer's files there."""
        output.mkdir(parents=True, exist_ok=True)
        for name in self.chat_config.tokenizer_files:
            if (self.source / name).resolve() != (output / name).resolve():
                with (self.source / name).open("rb") as source, atomic_write(output / name, "wb") as copy:
                    shutil.copyfileobj(source, copy)
        write_chat_config(output, self.chat_config)


def plan_files(
    config_or_folder: Path,
    quantization: Quantization,
    conv_template: str = "LM",
    say: Say = lambda text: None,
) -> ModelFiles:
    """What a model folder for a checkpoint with this config gets; nothing is written yet.

    Special tokens' ids and sampling defaults come from `generation_config.json` or `config.json`. Tells `say` of
    fields that are ignored. Raises `GeckoError` for an invalid config, an unknown template, or a tokenizer with more
    ids than the vocabulary.
    """
    if conv_template not in TEMPLATES:
        raise GeckoError(f"unknown conversation template {conv_template!r}; expected one of {', '.join(TEMPLATES)}")
    config = read_model_config(config_or_folder, say)
    path = _config_path(config_or_folder)
    files = [name for name in TOKENIZER_FILES if (path.parent / name).is_file()]
    if TOKENIZER in files:
        Tokenizer(path.parent, config.vocab_size)
    chat_config = ChatConfig(
        version=__version__,
        quantization=quantization.name,
        config=config.model_dump(),
        vocab_size=config.vocab_size,
        tokenizer_files=files,
        conv_template=TEMPLATES[conv_template],
        **read_generation(path, config.vocab_size),
    )
    return ModelFiles(config, chat_config, path.parent)


def _config_path(config_or_folder: Path) -> Path:
    return config_or_folder / "config.json" if config_or_folder.is_dir() else config_or_folder
