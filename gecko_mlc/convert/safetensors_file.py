"""Checkpoints in `.safetensors`: tensors are read from where they lie in the files, never mapped as a whole."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gecko_mlc.convert.tensors import Checkpoint, TensorType, identity_of
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import MAX_JSON_BYTES, check_file, parse_json

_DTYPES: dict[str, Any] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
}
# The dimensions of the largest array that NumPy has.
_MOST_DIMENSIONS = 64


class _Location(NamedTuple):
    file: Path
    offset: int
    type: TensorType


class Safetensors(Checkpoint):
    """The tensors in one file or several. Raises `GeckoError` for a file that is damaged, and a name in two of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._locations: dict[str, _Location] = {}
        for file in files:
            for name, location in _read_header(file):
                if name in self._locations:
                    raise GeckoError(
                        f"{file}: {name} is in {self._locations[name].file.name}, too; name the checkpoint that is"
                        " meant with --source"
                    )
                self._locations[name] = location
        if not self._locations:
            raise GeckoError(f"{files[0]}: no tensor in it")
        super().__init__({name: location.type for name, location in self._locations.items()}, identity_of(files))

    def read(self, name: str) -> np.ndarray:
        """The tensor, read by itself."""
        file, offset, (shape, dtype) = self._locations[name]
        count = math.prod(shape)
        with file.open("rb") as stream:
            stream.seek(offset)
            values = np.fromfile(stream, dtype, count)
        if len(values) != count:
            raise GeckoError(f"{file}: ends inside {name}; the file is incomplete")
        return values.reshape(shape)


def _read_header(file: Path) -> Iterator[tuple[str, _Location]]:
    """Names and places of a file's tensors, checked against each other and the file's size."""
    try:
        size = check_file(file)
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise GeckoError(f"{file}: {size} bytes are no safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_JSON_BYTES):
                raise GeckoError(
                    f"{file}: not a safetensors file, or cut short: a header of {length:,} bytes in a file of {size:,}"
                )
            header = parse_json(stream.read(length).decode(), f"{file}: its header")
    except OSError as error:
        raise GeckoError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GeckoError(f"{file}: its header is not JSON: {error}") from None
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    try:
        entries.sort(key=lambda item: item[1]["data_offsets"])
        for name, entry in entries:
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            if not all(type(number) is int for number in (start, stop, *shape)) or len(shape) > _MOST_DIMENSIONS:
                raise TypeError
            if entry["dtype"] not in _DTYPES:
                raise GeckoError(f"{file}: {name} is {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
            dtype = _DTYPES[entry["dtype"]]
            if start != end or min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
                raise GeckoError(
                    f"{file}: {name} {list(shape)} {entry['dtype']} lies at bytes {start} to {stop},"
                    f" expected it to begin at {end} and to have its shape's size"
                )
            end = stop
            yield name, _Location(file, 8 + length + start, TensorType(shape, dtype))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GeckoError(f"{file}: its header does not describe tensors") from None
    if 8 + length + end != size:
        raise GeckoError(f"{file}: {size:,} bytes, expected {8 + length + end:,}; the file is damaged or incomplete")
