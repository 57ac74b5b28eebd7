"""What training puts around a model: wrappers of its modules, and other things beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gecko_mlc.convert.shards import Say
from gecko_mlc.convert.tensors import Checkpoint, Renamed
from gecko_mlc.formats.errors import GeckoError

# Every name of the model's has one of these, and before it what the wrappers around the whole model are called.
_ROOT = re.compile(r"(?:^|(?<=\.))(?:embed|layers|output|rope)\.")
# Modules that wrap any other, from torch.compile, FSDP, activation checkpointing and Lightning.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
# Of torch.optim.swa_utils.AveragedModel.
_COUNTER = "n_averaged"
# Words in the names of files, keys and prefixes that say that it is not the model.
_BESIDE = {
    *("average", "averaged", "avg", "ema", "shadow", "swa", "teacher"),
    *("momentum", "optim", "optimizer", "optimizers", "scaler", "scheduler"),
    *("args", "random", "rng", "training"),
}


def is_model_name(name: str) -> bool:
    """Whether a tensor's name can be one of the model's, with what is around it."""
    return _ROOT.search(name) is not None


def the_model(names: Iterable[str]) -> list[str]:
    """Of files', keys' or prefixes' names those that do not say that they are an average, an optimizer's or the like,
    if there are any."""
    every = list(names)
    return [name for name in every if not _BESIDE & set(re.split(r"[\W_]+", name.lower()))] or every


def unwrapped(checkpoint: Checkpoint, say: Say) -> Checkpoint:
    """The checkpoint with the names that its model had before training wrapped it.

    Tells `say` what was taken off the names, and what was left out. Raises `GeckoError` where several models are left.
    """
    names: dict[str, dict[str, str]] = {}
    wrappers: set[str] = set()
    for name in checkpoint.tensors:
        parts = name.split(".")
        wrappers |= _WRAPPERS & set(parts)
        inner = ".".join(part for part in parts if part not in _WRAPPERS)
        root = _ROOT.search(inner)
        prefix, own = (inner[: root.start()], inner[root.start() :]) if root else ("", inner)
        if own.rpartition(".")[2] == _COUNTER:
            continue
        if own in names.setdefault(prefix, {}):
            raise GeckoError(f"the checkpoint has {names[prefix][own]} and {name}, which are the same tensor's")
        names[prefix][own] = name
    chosen = the_model(names)
    result: dict[str, str] = {}
    for prefix in chosen:
        if twice := result.keys() & names[prefix].keys():
            raise GeckoError(
                f"several models in the checkpoint, by the prefixes {', '.join(repr(p) for p in chosen)}, which all"
                f" have {min(twice)}; save the one that is meant by itself"
            )
        result |= names[prefix]
    if removed := [*filter(None, chosen), *(f"{wrapper}." for wrapper in sorted(wrappers))]:
        say(f"taken off the tensors' names: {', '.join(removed)}")
    if left := [prefix for prefix in names if prefix not in chosen]:
        say(f"left out, beside the model: {', '.join(f'{prefix}*' for prefix in left)}")
    return Renamed(checkpoint, result)
