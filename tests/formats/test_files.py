"""Files that are none: nothing is waited for, and what Git LFS left is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import check_file, read_json
from gecko_mlc.formats.library import read_metadata
from gecko_mlc.runtime.text.tokenizer import Tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (listening, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "folder": (Path.mkdir, "a folder, expected a file"),
    "pointer": (lambda path: path.write_text(POINTER), "a pointer of Git LFS .* fetch it with `git lfs pull`"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_json,
    "tokenizer.json": lambda path: Tokenizer(path.parent),
    "model.safetensors": lambda path: open_checkpoint(path.parent),
    "model.safetensors.index.json": lambda path: open_checkpoint(path.parent),
    "pytorch_model.bin": lambda path: open_checkpoint(path.parent),
    "cpu.so": read_metadata,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    make, message = NO_FILES[kind]
    make(tmp_path / name)
    with pytest.raises(GeckoError, match=f"{name}: {message}"):
        READERS[name](tmp_path / name)


def test_a_file_has_its_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("twelve bytes")
    (tmp_path / "link").symlink_to("file")
    assert check_file(tmp_path / "link") == 12
