"""Checkpoints that PyTorch saved: a state_dict, or what training keeps with one in it. No pickle is executed."""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from gecko_mlc.convert.shards import Say
from gecko_mlc.convert.tensors import Checkpoint, TensorType, identity_of
from gecko_mlc.convert.training import is_model_name, the_model
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import check_file

if TYPE_CHECKING:
    import torch

# What a message names of keys that were found.
_SHOWN = 8


class TorchFiles(Checkpoint):
    """The tensors in one file or several. Tells `say` where in a file they were found.

    Raises `GeckoError` for a file that is damaged, would run code or holds no state_dict, for a name in two of them,
    and for tensors that are no plain arrays.
    """

    def __init__(self, files: Sequence[Path], say: Say) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        places: dict[str, Path] = {}
        for file in files:
            for name, tensor in _state_dict(file, say).items():
                if name in places:
                    raise GeckoError(
                        f"{file}: {name} is in {places[name].name}, too; name the checkpoint that is meant with"
                        " --source"
                    )
                places[name], self._tensors[name] = file, tensor
        types = {name: _type(name, tensor, places[name]) for name, tensor in self._tensors.items()}
        super().__init__(types, identity_of(files))

    def read(self, name: str) -> np.ndarray:
        """The tensor as an array of its own dtype."""
        import torch

        shape, dtype = self.tensors[name]
        values = self._tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        array: np.ndarray = values.numpy().view(dtype).reshape(shape)
        return array


def _type(name: str, tensor: torch.Tensor, file: Path) -> TensorType:
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError:
        dtype = None
    if dtype is None or tensor.layout != torch.strided or tensor.is_meta:
        raise GeckoError(
            f"{file}: {name} is a {kind} tensor, {tensor.layout}, {tensor.device}; expected a plain one of floats"
        )
    return TensorType(tuple(tensor.shape), dtype)


def _state_dict(file: Path, say: Say) -> dict[str, torch.Tensor]:
    """The model's tensors in a file."""
    loaded = _load(file)
    if not isinstance(loaded, dict):
        raise GeckoError(f"{file}: expected a dict of tensors (a state_dict), found {type(loaded).__name__}")
    found = _find(loaded)
    if not found:
        keys = ", ".join(str(key)[:80] for key in list(loaded)[:_SHOWN]) + ", …" * (len(loaded) > _SHOWN)
        raise GeckoError(f"{file}: no state_dict with the model's names in it; its keys are: {keys or 'none'}")
    chosen = the_model(found)
    if len(chosen) > 1:
        raise GeckoError(
            f"{file}: several models in it, by the keys {', '.join(chosen)}; save the one that is meant by itself"
        )
    if chosen != [""]:
        left = [key for key in found if key not in chosen]
        say(f"{file}: the model is taken from its key {chosen[0]}" + (f", not {', '.join(left)}" if left else ""))
    return found[chosen[0]]


def _find(loaded: dict[Any, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Dicts of tensors with the model's names, by the keys that lead to them."""
    import torch

    found: dict[str, dict[str, torch.Tensor]] = {}
    waiting, seen = deque([("", loaded)]), {id(loaded)}
    while waiting:
        path, values = waiting.popleft()
        tensors = {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if any(map(is_model_name, tensors)):
            found[path] = tensors
            continue
        for key, value in values.items():
            # A pickle's dicts may hold each other.
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{path}.{key}" if path else str(key), value))
    return found


def _load(file: Path) -> Any:
    """What a file holds of tensors, numbers, text, lists and dicts."""
    try:
        import torch
    except ImportError:
        raise GeckoError(
            f"{file}: reading it needs PyTorch (pip install 'gecko-mlc[torch]'), or save it as .safetensors"
        ) from None
    check_file(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")
            # PyTorch's old format, no zip archive, cannot be mapped.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # Unpickling errors of many kinds; nothing was executed.
        raise GeckoError(
            f"{file}: not a state_dict of plain tensors, and nothing else is loaded (pickles can run code):"
            f" {_reason(error)}; save model.state_dict() alone, or as .safetensors"
        ) from None


def _harmless() -> list[Any]:
    """What training scripts keep beside a state_dict, and that does nothing when it is made."""
    values: tuple[Any, ...] = (np.zeros(1), np.float64(0))
    reconstruct, scalar = (value.__reduce__()[0] for value in values)
    return [
        *(argparse.Namespace, pathlib.PosixPath, np.ndarray, np.dtype, reconstruct, scalar),
        *((made, f"numpy.core.multiarray.{made.__name__}") for made in (reconstruct, scalar)),
        *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd?"),
    ]


def _reason(error: Exception) -> str:
    """PyTorch's reason, without its advice to load the file all the same."""
    text = str(error).strip() or type(error).__name__
    if found := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text):
        return f"it holds {found[1]}"
    lines = text.rpartition("WeightsUnpickler error: ")[2].splitlines()
    return next((line.strip() for line in lines if line.strip() and "weights_only" not in line), type(error).__name__)
