"""A small model to spoil: its checkpoint, model folder and library, and the commands that meet them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from gecko_mlc.convert.chat_config import plan_files
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.library import METADATA_MARKER
from gecko_mlc.formats.quantization import quantization
from support.commands import Done
from support.models import random_parameters, small_config
from support.tokens import END, ids, small_tokenizer

CONFIG = small_config(num_layers=1, vocab_size=300)


class Inputs(NamedTuple):
    """What a command may be given, in a folder of its own."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def library(self) -> Path:
        return self.folder / "lib.so"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def tokens(self) -> Path:
        return self.folder / "ids.json"

    def command(self, name: str) -> list[str | Path]:
        """A command that reads them."""
        run = ["--model-lib", self.library]
        commands: dict[str, list[str | Path]] = {
            "generate": ["generate", self.model, *run, "-p", "a", "--max-tokens", "2"],
            "info": ["info", self.model],
            "check": ["info", self.model, "--check"],
            "library": ["info", self.library],
            "plan": ["info", self.library, "--plan"],
            "convert": ["convert_weight", self.checkpoint, "-o", self.output],
            "gen_config": ["gen_config", self.checkpoint, "-o", self.output],
            "compile": ["compile", self.checkpoint / "config.json", "-o", self.output / "x.so"],
            "logits": ["logits", self.model, *run, "--tokens", self.tokens, "-o", self.folder / "out.safetensors"],
        }
        return commands[name]


def check_refused(done: Done, line: str) -> None:
    """One line of error, nothing on standard output, and exit code 1."""
    *_, last = done.stderr.rstrip("\n").split("\n")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert last.startswith("error: ")
    assert re.search(line, last), last
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def make_inputs(folder: Path, compiled: Callable[..., Path]) -> Inputs:
    """What every command takes as it is; the library is `compiled`."""
    inputs = Inputs(folder)
    inputs.checkpoint.mkdir()
    save_file(random_parameters(CONFIG), inputs.checkpoint / "model.safetensors")
    fields = {**CONFIG.model_dump(), "model_type": "gecko", "eos_token_id": ids(END)[0]}
    (inputs.checkpoint / "config.json").write_text(json.dumps(fields))
    (inputs.checkpoint / "tokenizer.json").write_text(small_tokenizer()._tokenizer.to_str())
    scheme = quantization("q0f32")
    convert_weights(CONFIG, open_checkpoint(inputs.checkpoint), scheme, inputs.model)
    plan_files(inputs.checkpoint, scheme).write(inputs.model)
    inputs.library.symlink_to(compiled(CONFIG))
    inputs.tokens.write_text("[1, 2, 3]")
    return inputs


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.unlink()
    path.write_text(json.dumps(value))


def edit_metadata(library: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a library says of itself, which lies in the middle of it: all else stays where it was."""
    data = library.read_bytes()
    start = data.index(METADATA_MARKER) + len(METADATA_MARKER)
    end = data.index(b"\0", start)
    value = json.loads(data[start:end])
    # They are as by default, and make room.
    del value["sampling_parameters"], value["recent_tokens"]
    change(value)
    text = json.dumps(value, separators=(",", ":")).encode()
    library.unlink()
    library.write_bytes(data[:start] + text.ljust(end - start) + data[end:])


def edit_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    value = json.loads(data[8 : 8 + length])
    change(value)
    header = json.dumps(value).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def sparse(path: Path, size: int = 2**30) -> None:
    """A large file that takes no place."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(size)


def pipe(path: Path) -> None:
    """A pipe that nobody writes into."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(path: Path, to: str | Path) -> None:
    """A symbolic link in place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(to)
