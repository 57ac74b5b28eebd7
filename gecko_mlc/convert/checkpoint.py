"""Opening checkpoints: the reference's state_dict in `.safetensors` or PyTorch's files, as training leaves them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from gecko_mlc.convert.safetensors_file import Safetensors
from gecko_mlc.convert.scaled import Scaled
from gecko_mlc.convert.shards import Say
from gecko_mlc.convert.tensors import Checkpoint
from gecko_mlc.convert.torch_file import TorchFiles
from gecko_mlc.convert.training import the_model, unwrapped
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import read_json

_SAFETENSORS = ".safetensors"
_TORCH = (".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"
# What a model folder's weights are called, which is no checkpoint.
_CONVERTED = "params_shard_"


def open_checkpoint(source: Path, say: Say = lambda text: None) -> Checkpoint:
    """The checkpoint in a file, or in a folder that holds one.

    Tells `say` what was taken off the names, and what was left out. Raises `GeckoError` when there is none, more than
    one, or one that is damaged.
    """
    files = _files(source)
    opened = Safetensors(files) if files[0].suffix == _SAFETENSORS else TorchFiles(files, say)
    return Scaled(unwrapped(opened, say))


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return _files_in(source)
    if not source.exists():
        raise GeckoError(f"{source}: no such file or folder")
    if source.name.endswith(_INDEX):
        return _indexed(source)
    if source.suffix not in (_SAFETENSORS, *_TORCH):
        expected = ", ".join((_SAFETENSORS, *_TORCH, _INDEX))
        raise GeckoError(f"{source}: unknown kind of checkpoint; expected one of {expected}")
    return [source]


def _files_in(folder: Path) -> list[Path]:
    """The files of the folder's checkpoint: the model's before what is beside it, `.safetensors` before others."""
    there = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    for names, suffixes in product((the_model(there), there), ((_SAFETENSORS,), _TORCH)):
        if indexes := [name for name in names if name.endswith(tuple(suffix + _INDEX for suffix in suffixes))]:
            if len(indexes) > 1:
                raise GeckoError(f"{folder}: several checkpoints, {', '.join(indexes)}; name one with --source")
            return _indexed(folder / indexes[0])
        if found := [name for name in names if name.endswith(suffixes) and not name.startswith(_CONVERTED)]:
            return [folder / name for name in found]
    shown = ", ".join(there[:8]) + ", …" * (len(there) > 8)
    raise GeckoError(
        f"{folder}: expected {_SAFETENSORS} or PyTorch files ({', '.join(_TORCH)}), found {shown or 'none'}"
    )


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise GeckoError(f"{index}: no weight_map of tensor names to files")
    names = sorted(set(weight_map.values()))
    if any(name != Path(name).name or name in ("", ".", "..") or "\0" in name for name in names):
        raise GeckoError(f"{index}: a file name leads out of the folder")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise GeckoError(f"{index}: {missing[0]} is missing, {len(missing)} of {len(names)} files are")
    return [index.parent / name for name in names]
