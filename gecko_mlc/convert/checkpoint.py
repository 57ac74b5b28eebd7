"""Reading checkpoints: the reference's state_dict in `.safetensors` (one file or sharded) or `.pth`.

Tensors are read one at a time from where they lie in the file, never mapped as a whole, so memory stays
bounded. No pickle is executed.
"""

from __future__ import annotations

import json
import math
import struct
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import MAX_JSON_BYTES, read_json

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
_TORCH_SUFFIXES = (".pth", ".pt")


class _Location(NamedTuple):
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: Any


class Checkpoint:
    """Tensors by name. `shapes` tells what is there, `read` returns one as a NumPy array.

    `identity` tells it from others: by its files' names, sizes and times of change; one in memory is like no other.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], files: Iterable[Path] = ()) -> None:
        self.shapes = shapes
        states = [(file, file.stat()) for file in files]
        parts = [f"{file.name} {state.st_size} {state.st_mtime_ns}" for file, state in states]
        self.identity = "\n".join(parts) or uuid.uuid4().hex

    def read(self, name: str) -> np.ndarray:
        """The tensor `name`, in its own dtype (bfloat16 as ml_dtypes')."""
        raise NotImplementedError


def open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint in a file, or in a folder that holds one.

    Raises `GeckoError` when there is none, more than one, or one that is damaged.
    """
    if source.is_dir():
        return _open_folder(source)
    if not source.exists():
        raise GeckoError(f"{source}: no such file or folder")
    if source.suffix == ".safetensors":
        return _Safetensors([source])
    if source.suffix in _TORCH_SUFFIXES:
        return _TorchCheckpoint(source)
    raise GeckoError(f"{source}: unknown kind of checkpoint; expected .safetensors or {', '.join(_TORCH_SUFFIXES)}")


def _open_folder(folder: Path) -> Checkpoint:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        weight_map = read_json(indexes[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            raise GeckoError(f"{indexes[0]}: no weight_map of tensor names to files")
        names = sorted(set(weight_map.values()))
        if any(name != Path(name).name for name in names):
            raise GeckoError(f"{indexes[0]}: a file name leads out of the folder")
        checkpoint = _Safetensors([folder / name for name in names])
        missing = [name for name in weight_map if name not in checkpoint.shapes]
        if missing:
            raise GeckoError(f"{indexes[0]}: {missing[0]} is not in {weight_map[missing[0]]}")
        return checkpoint
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return _Safetensors(files)
    files = sorted(f for f in folder.iterdir() if f.suffix in _TORCH_SUFFIXES)
    if len(files) == 1:
        return _TorchCheckpoint(files[0])
    found = ", ".join(f.name for f in files) or "none"
    raise GeckoError(f"{folder}: expected .safetensors files or one PyTorch file, found {found}")


class _Safetensors(Checkpoint):
    def __init__(self, files: list[Path]) -> None:
        self._locations: dict[str, _Location] = {}
        for file in files:
            for name, location in _read_header(file):
                if name in self._locations:
                    raise GeckoError(f"{file}: {name} is also in {self._locations[name].file.name}")
                self._locations[name] = location
        super().__init__({name: location.shape for name, location in self._locations.items()}, files)

    def read(self, name: str) -> np.ndarray:
        """The tensor, read by itself."""
        file, offset, shape, dtype = self._locations[name]
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
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise GeckoError(f"{file}: {size} bytes are no safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_JSON_BYTES):
                raise GeckoError(
                    f"{file}: not a safetensors file, or cut short: a header of {length:,} bytes in a file of {size:,}"
                )
            header = json.loads(stream.read(length))
    except OSError as error:
        raise GeckoError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise GeckoError(f"{file}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise GeckoError(f"{file}: its header is not a JSON object")
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    try:
        entries.sort(key=lambda item: item[1]["data_offsets"])
        for name, entry in entries:
            start, stop = (int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(extent) for extent in entry["shape"])
            if entry["dtype"] not in _SAFETENSORS_DTYPES:
                raise GeckoError(
                    f"{file}: {name} is {entry['dtype']}; expected one of {', '.join(_SAFETENSORS_DTYPES)}"
                )
            dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
            if start != end or min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
                raise GeckoError(
                    f"{file}: {name} {list(shape)} {entry['dtype']} lies at bytes {start} to {stop},"
                    f" expected it to begin at {end} and to have its shape's size"
                )
            end = stop
            yield name, _Location(file, 8 + length + start, shape, dtype)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GeckoError(f"{file}: its header does not describe tensors") from None
    if 8 + length + end != size:
        raise GeckoError(f"{file}: {size:,} bytes, expected {8 + length + end:,}; the file is damaged or incomplete")


class _TorchCheckpoint(Checkpoint):
    def __init__(self, file: Path) -> None:
        try:
            import torch
        except ImportError:
            raise GeckoError(
                f"{file}: reading it needs PyTorch (pip install 'gecko-mlc[torch]'), or save it as .safetensors"
            ) from None
        # PyTorch's old format, no zip archive, cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # unpickling errors of many kinds; nothing was executed.
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise GeckoError(
                f"{file}: not a state_dict of plain tensors, and nothing else is loaded"
                f" (pickles can run code): {reason}"
            ) from None
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise GeckoError(f"{file}: expected a dict of tensors (a state_dict)")
        self._tensors = loaded
        super().__init__({name: tuple(value.shape) for name, value in loaded.items()}, [file])

    def read(self, name: str) -> np.ndarray:
        """The tensor as an array of its own dtype."""
        import torch

        value = self._tensors[name].contiguous()
        if value.dtype == torch.bfloat16:
            value = value.view(torch.uint16)
            return np.asarray(value.numpy()).view(ml_dtypes.bfloat16)
        array: np.ndarray = value.numpy()
        return array
