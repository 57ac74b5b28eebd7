"""Reading JSON that may be hostile, and writing files whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.options import first_fault

Schema = TypeVar("Schema", bound=BaseModel)

# Of real files, the indexes of the largest models have some megabytes.
MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64

_TOO_DEEP = f"nested deeper than {MAX_JSON_DEPTH}"
_TOO_LARGE = "an integer of more than 64 bits"
_SURROGATE = re.compile("[\ud800-\udfff]")


# Git LFS has a small text that begins so in the place of a file that was not fetched.
_POINTER = b"version https://git-lfs"


def check_file(path: Path, most: float = math.inf) -> int:
    """The size of a file in bytes.

    Raises `GeckoError` for what is no regular file, like a pipe, from which nothing may ever come, for a pointer of Git
    LFS, and for a file of more than `most` bytes; `OSError` as the system does, when it is missing, say.
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
    if state.st_size > most:
        raise GeckoError(f"{path}: {state.st_size:,} bytes, expected at most {most:,}")
    return state.st_size


def is_plain_name(name: str) -> bool:
    """Whether `name` is that of a file in a folder: it leads nowhere else."""
    return "\0" not in name and len(name) <= 255 and name == Path(name).name and name not in ("", ".", "..")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises `GeckoError` naming the file when it is missing, too large or not UTF-8, and as `check_file` and `parse_json`
    do.
    """
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The text in a JSON file, which nothing says of yet. Raises `GeckoError` as `read_json` does."""
    try:
        size = check_file(path, MAX_JSON_BYTES)
        with path.open("rb") as file:
            data = file.read(size + 1)
        if len(data) > size:
            raise GeckoError(f"{path}: it grows while it is read, it had {size:,} bytes")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise GeckoError(f"{path}: no such file") from None
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GeckoError(f"{path}: not JSON: {error}") from None


def parse_json(text: str, name: object) -> dict[str, Any]:
    """The object in a JSON text, of what `name` says, as `parse_json_value` reads it. Raises `GeckoError` naming it."""
    value = parse_json_value(text, name)
    if not isinstance(value, dict):
        raise GeckoError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json_value(text: str, name: object) -> Any:
    """The value in a JSON text, of what `name` says.

    Raises `GeckoError` naming it, and the place, when the text is nested too deep, holds a key twice, a number that
    JSON has not (NaN) or that no program is sure to hold, or half of a surrogate pair.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = min(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise GeckoError(f"{name}: the key {twice!r} is there twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise GeckoError(f"{name}: {_TOO_DEEP}") from None
    except json.JSONDecodeError as error:
        raise GeckoError(f"{name}: not JSON: {error}") from None
    except ValueError:  # Python has a limit of its own to the digits that it reads.
        raise GeckoError(f"{name}: {_TOO_LARGE}") from None
    _check(value, name, ())
    return value


def _check(value: Any, name: object, place: tuple[Any, ...]) -> None:
    """Raises `GeckoError` for what no JSON should have: it would make a fault of its own later, or when it is told."""
    fault = None
    if isinstance(value, dict | list):
        if len(place) == MAX_JSON_DEPTH:
            raise GeckoError(f"{name}: {_TOO_DEEP}")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check(key, name, place)
            _check(item, name, (*place, key))
    elif isinstance(value, str):
        if _SURROGATE.search(value):
            fault = "a lone surrogate, which is no character"
    elif isinstance(value, float):
        if not math.isfinite(value):
            fault = f"not JSON: {json.dumps(value)} is no number"
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        fault = _TOO_LARGE
    if fault:
        raise GeckoError(f"{name}: {fault}" + (f", at {'.'.join(map(str, place))}" if place else ""))


def validated(schema: type[Schema], value: dict[str, Any], name: object) -> Schema:
    """A JSON object as its `schema` has it. Raises `GeckoError` naming `name` and the first field at fault."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise GeckoError(f"{name}: {field}: {reason}") from None


def check_writable(path: Path) -> None:
    """Raise `GeckoError` where no file can be written to `path`; to be asked before work that takes long."""
    if path.is_dir():
        raise GeckoError(f"{path}: a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise GeckoError(f"{path}: there is no folder {path.parent} to write it to")
    if not os.access(path.parent if path.is_file() or not path.exists() else path, os.W_OK):
        raise GeckoError(f"{path}: cannot be written, permission denied")


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not; text is UTF-8.

    What is there and is no file, like a pipe, is written to as it is. Raises `GeckoError` as `check_writable` does.
    """
    check_writable(path)
    encoding = None if "b" in mode else "utf-8"
    if path.exists() and not path.is_file():
        with path.open(mode, encoding=encoding) as file:
            yield file
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
