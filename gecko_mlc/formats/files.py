"""Reading JSON that may be hostile, and writing files whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.options import first_fault

Schema = TypeVar("Schema", bound=BaseModel)

# The largest real file is a tokenizer of some tens of megabytes.
MAX_JSON_BYTES = 256 * 2**20


# Git LFS has a small text that begins so in the place of a file that was not fetched.
_POINTER = b"version https://git-lfs"


def check_file(path: Path) -> int:
    """The size of a file in bytes.

    Raises `GeckoError` for what is no regular file, like a pipe, from which nothing may ever come, and for a pointer of
    Git LFS; `OSError` as the system does, when it is missing, say.
    """
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise GeckoError(f"{path}: a folder, expected a file")
    if not stat.S_ISREG(state.st_mode):
        raise GeckoError(f"{path}: not a regular file but a pipe, a socket or a device")
    if state.st_size < 1024:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise GeckoError(f"{path}: a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`")
    return state.st_size


def is_plain_name(name: str) -> bool:
    """Whether `name` is that of a file in a folder: it leads nowhere else."""
    return "\0" not in name and len(name) <= 255 and name == Path(name).name and name not in ("", ".", "..")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises `GeckoError` naming the file when it is missing, too large or not UTF-8, and as `check_file` and `parse_json`
    do.
    """
    try:
        size = check_file(path)
        if size > MAX_JSON_BYTES:
            raise GeckoError(f"{path}: {size:,} bytes of JSON, expected at most {MAX_JSON_BYTES:,}")
        return parse_json(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError:
        raise GeckoError(f"{path}: no such file") from None
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GeckoError(f"{path}: not JSON: {error}") from None


class _Constant(str):
    """What Python writes for a number that JSON has not: NaN, Infinity or -Infinity."""


def parse_json(text: str, name: object) -> dict[str, Any]:
    """The object in a JSON text, of what `name` says.

    Raises `GeckoError` naming it when the text is nested too deep, holds a key twice, a number that JSON has not
    (NaN), or is no object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise GeckoError(f"{name}: the key {twice[0]!r} is there twice")
        for key, value in pairs:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, _Constant):
                    raise GeckoError(f"{name}: not JSON: {item} is no number, at {key[:80]!r}")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_Constant)
    except RecursionError:
        raise GeckoError(f"{name}: nested too deep to be read") from None
    except ValueError as error:
        raise GeckoError(f"{name}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GeckoError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def validated(schema: type[Schema], value: dict[str, Any], name: object) -> Schema:
    """A JSON object as its `schema` has it. Raises `GeckoError` naming `name` and the first field at fault."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise GeckoError(f"{name}: {field}: {reason}") from None


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, mode) as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
