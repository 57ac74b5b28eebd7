"""A model ready to use: a folder, a library, an engine and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gecko_mlc.formats.chat_config import CHAT_CONFIG, ChatConfig, read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import Metadata
from gecko_mlc.formats.options import check_type
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.devices.memory import free_memory
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.scheduler import Stream
from gecko_mlc.runtime.library import Library, check_library
from gecko_mlc.runtime.memory import model_needs, told_of_shortage
from gecko_mlc.runtime.parameters import ParameterReader
from gecko_mlc.runtime.state.slots import slots_of
from gecko_mlc.runtime.text.tokenizer import Tokenizer
from gecko_mlc.targets import find


class Model:
    """A model folder run by a library.

    Raises `GeckoError`, before any kernel runs, when the two do not belong together or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        model_lib: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        threads: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.folder, self.chat_config = folder, read_chat_config(folder)
        metadata = check_library(model_lib)
        check_fit(self.chat_config, model_lib, metadata)
        needs, free = model_needs(metadata), free_memory()
        on_host = find(metadata.target.kind).player.on_host
        room = None if free is None else free - sum(needs.values()) * on_host
        # The disk is busy while TVM and the library are loaded.
        with (
            told_of_shortage(needs if on_host else {}, free),
            ParameterReader(folder, metadata.parameters, room) as reader,
        ):
            self.library = Library(model_lib)
            player = self.library.player
            player.threads = threads
            with told_of_shortage(needs, free if on_host else player.free_memory()):
                self.engine = Engine(self.library, reader.load(player, progress))
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded when text is first needed."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self.folder, self.chat_config)
        return self._tokenizer

    def default_sampling(self) -> Sampling:
        """The sampling parameters of the model's chat config."""
        return Sampling(**{name: getattr(self.chat_config, name) for name in Sampling.model_fields})

    def generate(
        self,
        prompt: str,
        options: GenerationOptions | None = None,
        slot: int | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        special: bool = False,
    ) -> Generation:
        """Continue `prompt` from an empty state, in `slot` or any that is free; no conversation is disturbed.

        What reads like a special token in the prompt is one if `special`, else it is plain text. Raises `GeckoError`
        for an empty prompt. No more than the model's `options` are needed.
        """
        options = self.options() if options is None else options
        return self.generate_ids(self.encode_prompt(prompt, special), options, slot, interrupted)

    def generate_ids(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        slot: int | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Continue the ids of a stream's beginning from an empty state."""
        check_type("options", options, GenerationOptions)
        lease = slots_of(self.engine).lease(slot)
        return Generation(Stream(lease, self.tokenizer, prompt, options), interrupted)

    def encode_prompt(self, prompt: str, special: bool = False) -> list[int]:
        """Ids of a stream's beginning, the model's first token before them if they have it not; what reads like a
        special token is one if `special`."""
        check_type("prompt", prompt, str)
        ids = self.tokenizer.encode(prompt, special)
        if not ids:
            raise GeckoError("the prompt is empty: expected some text to continue")
        return self.tokenizer.with_beginning(ids, self._first())

    def options(self, **changes: Any) -> GenerationOptions:
        """Generation options as the model's chat config has them, with `changes`: names of `GenerationOptions`, and of
        `Sampling`. Raises `GeckoError` for unknown names and values out of range."""
        defaults: dict[str, Any] = {
            "sampling": self.default_sampling(),
            "stop_tokens": self.chat_config.stop_tokens(),
        }
        return GenerationOptions(**{**defaults, **changes})

    def beginning(self) -> list[int]:
        """The ids that every stream begins with: what the chat config says, or else the tokenizer."""
        return self.tokenizer.with_beginning([], self._first())

    def _first(self) -> list[int]:
        bos = self.chat_config.bos_token_id
        return [] if bos is None else [bos]


def read_tokenizer(folder: Path, chat_config: ChatConfig) -> Tokenizer:
    """A model folder's tokenizer, which needs no library.

    Raises `GeckoError` when it or another of its files is missing, is damaged, or has ids that the model lacks.
    """
    tokenizer = Tokenizer(folder, chat_config.vocab_size)
    for name in chat_config.tokenizer_files:
        if not (folder / name).is_file():
            raise GeckoError(f"{folder / CHAT_CONFIG}: tokenizer_files: there is no {name} in the folder")
    return tokenizer


def check_fit(chat_config: ChatConfig, model_lib: Path, metadata: Metadata) -> None:
    """Refuse a library of another model or quantization, naming what differs."""
    if metadata.quantization != chat_config.quantization:
        raise GeckoError(
            f"{model_lib}: compiled for {metadata.quantization}, the model folder is {chat_config.quantization}",
            f"compile one with --quantization {chat_config.quantization}",
        )
    differing = [
        f"{key} {metadata.config.get(key)!r} instead of {value!r}"
        for key, value in chat_config.config.items()
        if metadata.config.get(key) != value
    ]
    if differing:
        raise GeckoError(
            f"{model_lib}: compiled for another model: {', '.join(differing)}", "compile one for this folder"
        )
