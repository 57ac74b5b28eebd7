"""What a library says of itself, read from its file: without loading it, on whatever machine."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from gecko_mlc.runtime.errors import GeckoError
from pydantic import ValidationError

from gecko_mlc.abi import ABI_VERSION, METADATA_MARKER, Metadata


def read_metadata(path: Path) -> Metadata:
    """The metadata of the library at `path`.

    Raises `GeckoError` for a file that is missing, is no library, or is one of another ABI.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(METADATA_MARKER)
            end = content.find(b"\0", start)
            text = content[start + len(METADATA_MARKER) : end] if 0 <= start < end else b""
    except FileNotFoundError:
        raise GeckoError(f"{path}: no such library; `gecko-mlc compile` makes one") from None
    except ValueError:  # An empty file.
        text = b""
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None
    if not text:
        raise GeckoError(f"{path}: not a library of gecko-mlc, which hold metadata")
    try:
        version = json.loads(text)["abi_version"]
        if version != ABI_VERSION:
            raise GeckoError(f"{path}: ABI version {version}, expected {ABI_VERSION}; compile it again")
        return Metadata.model_validate_json(text)
    except (ValueError, KeyError, TypeError, ValidationError):
        raise GeckoError(f"{path}: its metadata cannot be read, the file is damaged; compile it again") from None
