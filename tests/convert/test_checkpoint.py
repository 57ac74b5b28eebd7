"""Checkpoints as training leaves them: wrapped, nested, in pieces, beside other things, in 8 bits."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from support.models import random_parameters, small_config

from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import quantization

CONFIG = small_config(num_layers=1)
PARAMETERS = random_parameters(CONFIG)
TENSORS = {name: torch.from_numpy(value) for name, value in PARAMETERS.items()}
OTHERS = {name: value + 1 for name, value in TENSORS.items()}
WEIGHT = "layers.0.mega.wv.weight"


def check(source: Path, *said: str) -> None:
    """The checkpoint is the model's, and opening it says this."""
    told: list[str] = []
    checkpoint = open_checkpoint(source, told.append)
    for name, value in PARAMETERS.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)
    convert_weights(CONFIG, checkpoint, quantization("q0f32"), source.parent / "model")
    assert told == [line.format(source=source) for line in said]


WRAPPED: dict[str, tuple[Callable[[str], str], str]] = {
    "DataParallel": (lambda name: f"module.{name}", "module."),
    "a field of a module": (lambda name: f"model.{name}", "model."),
    "any name": (lambda name: f"my.gecko.{name}", "my.gecko."),
    "compiled": (lambda name: f"_orig_mod.{name}", "_orig_mod."),
    "compiled and parallel": (lambda name: f"module._orig_mod.{name}", "module., _orig_mod."),
    "FSDP": (
        lambda name: "_fsdp_wrapped_module." + name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        "_fsdp_wrapped_module.",
    ),
    "layers alone": (
        lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        "_checkpoint_wrapped_module.",
    ),
    "all but the head": (lambda name: name if name.startswith("output.") else f"transformer.{name}", "transformer."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
def test_wrappers_are_taken_off_the_names(file: str, wrapper: str, tmp_path: Path) -> None:
    wrapped, removed = WRAPPED[wrapper]
    tensors = {wrapped(name): value for name, value in TENSORS.items()}
    if file == "model.pth":
        torch.save(tensors, tmp_path / file)
    else:
        save_tensors(tensors, tmp_path / file)
    check(tmp_path / file, f"taken off the tensors' names: {removed}")


OPTIMIZER = {"state": {0: {"exp_avg": TENSORS[WEIGHT], "step": 3}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
NESTED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": TENSORS, "optimizer": OPTIMIZER, "step": 3}, "model"),
    "state_dict": ({"state_dict": TENSORS, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "state_dict"),
    "model_state_dict": ({"model_state_dict": TENSORS, "loss": np.float64(2), "rng": np.arange(3)}, "model_state_dict"),
    "module": ({"module": TENSORS, "optimizer": None, "ds_version": "0.1"}, "module"),
    "deeper": ({"app": {"model": TENSORS, "scheduler": {"last": 1}}}, "app.model"),
    "an average beside": ({"model": TENSORS, "model_ema": OTHERS}, "model, not model_ema"),
    "an average alone": ({"ema": TENSORS, "step": 3}, "ema"),
    "moments by name": ({"model": TENSORS, "optim": {"exp_avg": OTHERS, "exp_avg_sq": dict(OTHERS)}}, "model, not "
        "optim.exp_avg, optim.exp_avg_sq"),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_the_model_is_found_in_what_training_saved(name: str, tmp_path: Path) -> None:
    saved, found = NESTED[name]
    torch.save(saved, tmp_path / "checkpoint.pt")
    check(tmp_path / "checkpoint.pt", f"{{source}}: the model is taken from its key {found}")


def test_parameters_and_what_is_no_tensor_beside_them(tmp_path: Path) -> None:
    saved = {name: torch.nn.Parameter(value) for name, value in TENSORS.items()}
    torch.save({**saved, "epoch": 3}, tmp_path / "checkpoint.ckpt")
    check(tmp_path / "checkpoint.ckpt")
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1)).state_dict()
    saved = {"n_averaged": averaged["n_averaged"], **{f"module.{name}": value for name, value in TENSORS.items()}}
    torch.save(saved, tmp_path / "averaged.pth")
    check(tmp_path / "averaged.pth", "taken off the tensors' names: module.")


def test_prefixes_of_an_average_are_left_out(tmp_path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in TENSORS.items()} | {f"ema_model.{k}": v for k, v in OTHERS.items()}
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    check(
        tmp_path / "last.ckpt",
        "{source}: the model is taken from its key state_dict",
        "taken off the tensors' names: model.",
        "left out, beside the model: ema_model.*",
    )


def halves() -> list[dict[str, torch.Tensor]]:
    names = sorted(TENSORS)
    return [{name: TENSORS[name] for name in part} for part in (names[::2], names[1::2])]


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_checkpoint_in_pieces_beside_other_files(suffix: str, indexed: bool, tmp_path: Path) -> None:
    source = tmp_path / "optimizer run"
    source.mkdir()
    weight_map = {}
    for number, half in enumerate(halves(), 1):
        name = f"model-0000{number}-of-00002.{suffix}"
        save = torch.save if suffix == "bin" else save_tensors
        save(half, source / name)
        weight_map |= dict.fromkeys(half, name)
    if indexed:
        (source / f"model.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for beside in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "ema.safetensors"):
        (source / beside).write_bytes(b"")
    check(source)


def test_a_tied_head_may_be_all_that_was_saved(tmp_path: Path) -> None:
    config = small_config(num_layers=1, share_emb=True)
    tensors = {
        **{p.name: TENSORS[p.name] for p in config.parameters()},
        "output.output.weight": TENSORS["embed.weight"],
    }
    del tensors["embed.weight"]
    save_tensors(tensors, tmp_path / "model.safetensors")
    convert_weights(config, open_checkpoint(tmp_path), quantization("q0f32"), tmp_path / "model")


def unclear(folder: Path, name: str) -> None:
    """A folder with a checkpoint that is not one."""
    if name == "two models":
        torch.save({"student": TENSORS, "critic": OTHERS}, folder / "model.pth")
    elif name == "two prefixes":
        save_tensors({f"{p}.{k}": v.clone() for p in "ab" for k, v in TENSORS.items()}, folder / "model.safetensors")
    elif name == "two checkpoints":
        torch.save(TENSORS, folder / "step-1.pt")
        torch.save(OTHERS, folder / "step-2.pt")
    elif name == "two indexes":
        for kind in ("a", "b"):
            (folder / f"{kind}.safetensors.index.json").write_text('{"weight_map": {}}')
    elif name == "no model":
        torch.save({"step": 3, "losses": torch.zeros(3)}, folder / "model.pth")
    elif name == "optimizer alone":
        torch.save(OPTIMIZER, folder / "optimizer.pt")
    elif name == "a list":
        torch.save([TENSORS[WEIGHT]], folder / "model.pth")
    elif name == "itself inside":
        saved: dict[str, Any] = {"step": 3}
        saved["again"] = saved
        torch.save(saved, folder / "model.pth")
    elif name == "sparse":
        torch.save({**TENSORS, WEIGHT: TENSORS[WEIGHT].to_sparse()}, folder / "model.pth")
    elif name == "the same name":
        save_tensors({WEIGHT: TENSORS[WEIGHT], f"_orig_mod.{WEIGHT}": OTHERS[WEIGHT]}, folder / "model.safetensors")
    elif name == "no tensor":
        save_file({}, folder / "model.safetensors")
    elif name == "nothing":
        (folder / "weights.gguf").touch()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two models", "model.pth: several models in it, by the keys student, critic; save the one that is meant"),
        ("two prefixes", "several models in the checkpoint, by the prefixes 'a.', 'b.'"),
        ("two checkpoints", r"step-2.pt: embed.weight is in step-1.pt, too; name .* with --source"),
        ("two indexes", "several checkpoints, a.safetensors.index.json, b.safetensors.index.json; name one with"),
        ("no model", "no state_dict with the model's names in it; its keys are: step, losses"),
        ("optimizer alone", "optimizer.pt: no state_dict .* its keys are: state, param_groups"),
        ("a list", r"expected a dict of tensors \(a state_dict\), found list"),
        ("itself inside", "its keys are: step, again"),
        ("sparse", f"{WEIGHT} is a float32 tensor, torch.sparse_coo, cpu; expected a plain one"),
        ("the same name", f"has _orig_mod.{WEIGHT} and {WEIGHT}, which are the same"),
        ("no tensor", "model.safetensors: no tensor in it"),
        ("nothing", r"expected .safetensors or PyTorch files \(.pth, .pt, .bin, .ckpt\), found weights.gguf"),
    ],
)
def test_what_is_unclear_is_named(name: str, message: str, tmp_path: Path) -> None:
    unclear(tmp_path, name)
    with pytest.raises(GeckoError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "none.safetensors", "b": "model.safetensors"}, "none.safetensors is missing, 1 of 2 files are"),
        ({"a": "/etc/passwd"}, "leads out of the folder"),
        ({"a": "../model.safetensors"}, "leads out of the folder"),
        ({"a": ".."}, "leads out of the folder"),
        ({"a": 3}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_hostile_indexes(weight_map: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tensors(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(GeckoError, match=message):
        open_checkpoint(tmp_path)


def test_names_that_are_missing_and_names_that_are_there(tmp_path: Path) -> None:
    foreign = {"h.attn.weight": TENSORS[WEIGHT], "lm_head.weight": TENSORS["embed.weight"].clone()}
    save_tensors({**foreign, "embed.weight": TENSORS["embed.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(GeckoError) as refused:
        checkpoint = open_checkpoint(tmp_path / "model.safetensors")
        convert_weights(CONFIG, checkpoint, quantization("q0f32"), tmp_path / "model")
    message = str(refused.value)
    assert "layers.0.mega.timenorm.weight [24] is missing" in message
    assert "lm_head.weight [53, 24] is not a parameter of this config" in message
    assert "h.attn.weight [32, 24] is not a parameter of this config" in message
    assert len(message) < 800


def scaled(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes with a scale for each block, element by element."""
    rows, columns = (extent // count for extent, count in zip(codes.shape, scale.shape, strict=True))
    return np.array(
        [[float(c) * float(scale[i // rows, j // columns]) for j, c in enumerate(row)] for i, row in enumerate(codes)],
        np.float32,
    )


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize(
    ("suffix", "shape"),
    [("_scale", ()), ("_scale", (1,)), ("_scale", (32,)), ("_scale", (32, 1)), ("_scale_inv", (4, 3)), ("", None)],
)
def test_8_bit_floats_are_scaled(
    suffix: str, shape: tuple[int, ...] | None, dtype: str, file: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    kind: Any = getattr(ml_dtypes, dtype)
    codes = rng.normal(0, 10, (32, 24)).astype(kind)
    tensors: dict[str, Any] = {**TENSORS, WEIGHT: torch.from_numpy(codes.astype(np.float32)).to(getattr(torch, dtype))}
    scale = np.ones((1, 1), np.float32)
    if shape is not None:
        scale = rng.uniform(0.01, 0.02, shape).astype(np.float32)
        tensors[WEIGHT + suffix] = torch.from_numpy(scale)
        scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    if file == "model.pth":
        torch.save(tensors, tmp_path / file)
    else:
        save_tensors(tensors, tmp_path / file)
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read(WEIGHT), scaled(codes, scale))
    convert_weights(CONFIG, checkpoint, quantization("q4f16_1"), tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_scale": torch.ones(5)},
            rf"{WEIGHT} \[32, 24\] is in 8 bits, and its {WEIGHT}_scale \[5\] float32 does not",
        ),
        ({"_scale": torch.ones(5, 3)}, "does not say how to scale it"),
        ({"_scale": torch.ones(32, dtype=torch.int32)}, "int32 does not say how to scale it"),
        ({"_scale": torch.ones(1), "_scale_inv": torch.ones(1)}, "with both"),
        ({".scale": torch.ones(1)}, rf"{WEIGHT}.scale \[1\] is not a parameter"),
        (
            {"": torch.zeros(32, 24, dtype=torch.int8)},
            f"{WEIGHT} is int8, expected float64, float32, float16, bfloat16",
        ),
        ({"": torch.zeros(32, 24, dtype=torch.bool)}, f"{WEIGHT} is bool, expected float64"),
        ({"": torch.zeros(32, 24, dtype=torch.float8_e4m3fnuz)}, f"{WEIGHT} is float8_e4m3fnuz, expected float64"),
    ],
)
def test_what_is_no_weight_is_refused_by_its_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    codes = TENSORS[WEIGHT].to(torch.float8_e4m3fn)
    tensors = {**TENSORS, WEIGHT: codes, **{WEIGHT + suffix: value for suffix, value in changes.items()}}
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(GeckoError, match=message):
        convert_weights(CONFIG, open_checkpoint(tmp_path), quantization("q0f32"), tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == ["model.pth"]
