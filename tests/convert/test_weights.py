"""Checkpoints to weights: exact, bounded, and clear about what does not fit."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.models import Golden, load_golden, random_parameters, small_config, with_derived

from gecko_mlc.config import GeckoConfig
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.derived import cema_coefficients, derived_shapes
from gecko_mlc.convert.random import write_random_checkpoint
from gecko_mlc.convert.tensors import Checkpoint, TensorType
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.weights import NUMPY_DTYPES, read_tensor_cache


class Arrays(Checkpoint):
    """A checkpoint in memory."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__({name: TensorType(array.shape, array.dtype) for name, array in arrays.items()})
        self._arrays = arrays

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def stored(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder."""
    result = {}
    for shard in read_tensor_cache(folder).records:
        data = (folder / shard.dataPath).read_bytes()
        for r in shard.records:
            raw = data[r.byteOffset : r.byteOffset + r.nbytes]
            result[r.name] = np.frombuffer(raw, NUMPY_DTYPES[r.dtype]).reshape(r.shape)
    return result


def convert(config: GeckoConfig, checkpoint: Checkpoint, scheme: str, folder: Path) -> dict[str, np.ndarray]:
    convert_weights(config, checkpoint, quantization(scheme), folder)
    return stored(folder)


@pytest.mark.parametrize("scheme", ["q0f32", "q0f16", "q0bf16"])
def test_matrices_take_the_dtype_and_nothing_else_is_rounded(scheme: str, tmp_path: Path) -> None:
    config = small_config(share_emb=True, rescale_nffn=True)
    parameters = random_parameters(config)
    result = convert(config, Arrays(parameters), scheme, tmp_path)
    dtype = NUMPY_DTYPES[quantization(scheme).model_dtype]
    for parameter in config.parameters():
        value = parameters[parameter.name]
        expected = value.astype(dtype) if parameter.matrix else value
        assert result[parameter.name].dtype == expected.dtype
        assert result[parameter.name].tobytes() == expected.tobytes()
    for name, value in with_derived(config, parameters).items():
        if name not in parameters:
            assert result[name].tobytes() == value.tobytes()
    assert len(result) == len(with_derived(config, parameters))


@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])
def test_matrices_become_codes_and_scales(scheme: str, tmp_path: Path) -> None:
    config, group = small_config(), quantization(scheme).group
    assert group is not None
    parameters = {p.name: p for p in config.parameters()}
    values = {
        name: value.astype(ml_dtypes.bfloat16) if parameters[name].matrix else value
        for name, value in random_parameters(config).items()
    }
    result = convert(config, Arrays(values), scheme, tmp_path)
    for name, value in values.items():
        if parameters[name].matrix:
            prefix = name.removesuffix("weight")
            q_weight, q_scale = group.quantize(value)
            assert result.pop(f"{prefix}q_weight").tobytes() == q_weight.tobytes()
            assert result.pop(f"{prefix}q_scale").tobytes() == q_scale.tobytes()
        else:
            assert result.pop(name).tobytes() == value.tobytes()
    assert sorted(result) == sorted(name for name, _ in derived_shapes(config))


@pytest.mark.parametrize("layout", ["one file", "sharded", "pth", "bf16 pth", "old pth"])
def test_every_layout_of_a_checkpoint(layout: str, golden: Golden, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    parameters = golden.parameters
    if layout == "one file":
        save_file(parameters, source / "model.safetensors")
    elif layout == "sharded":
        names = sorted(parameters)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in shards.items():
            save_file({name: parameters[name] for name in part}, source / file)
        weight_map = {name: file for file, part in shards.items() for name in part}
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        tensors = {name: torch.from_numpy(value) for name, value in parameters.items()}
        if layout == "bf16 pth":
            tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
        torch.save(tensors, source / "model.pth", _use_new_zipfile_serialization=layout != "old pth")
    result = convert(golden.config, open_checkpoint(source), "q0f32", tmp_path / "model")
    for parameter in golden.config.parameters():
        expected = parameters[parameter.name]
        if layout == "bf16 pth":
            expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(result[parameter.name], expected)


def faulty(name: str) -> tuple[GeckoConfig, dict[str, np.ndarray], str]:
    golden = load_golden("public_a")
    p = dict(golden.parameters)
    wv = "layers.0.mega.wv.weight"
    if name == "missing":
        return golden.config, {k: v for k, v in p.items() if k != wv}, f"{wv} .* is missing"
    if name == "unknown":
        return golden.config, {**p, "extra": np.zeros(2)}, r"extra \[2\] is not a parameter"
    if name == "transposed":
        return golden.config, {**p, wv: p[wv].T}, r"is \[64, 128\], expected \[128, 64\] \(transposed\?\)"
    if name == "nan":
        broken = p[wv].copy()
        broken[3, 5] = np.nan
        return golden.config, {**p, wv: broken}, f"{wv}: not all values are finite"
    if name == "overflow":
        return golden.config, {**p, wv: p[wv] * 1e8}, "does not fit into float16; convert to q0bf16 or q0f32"
    if name == "prior":
        prior = "output.final_norm.prior_count"
        return golden.config, {**p, prior: np.array(3)}, "prior_count is not zero"
    tied = load_golden("public_b")
    p = dict(tied.parameters)
    return tied.config, {**p, "output.output.weight": p["embed.weight"] + 1}, "differs from embed.weight"


@pytest.mark.parametrize("scheme", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("name", ["missing", "unknown", "transposed", "nan", "overflow", "prior", "untied"])
def test_what_does_not_fit_is_refused_and_the_old_weights_stay(name: str, scheme: str, tmp_path: Path) -> None:
    config, parameters, message = faulty(name)
    good = load_golden("public_b" if name == "untied" else "public_a")
    convert(config, Arrays(good.parameters), scheme, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(GeckoError, match=message):
        convert(config, Arrays(parameters), scheme, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


class Evil:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("pickle-was-run", "w")


@pytest.mark.filterwarnings("error")
def test_no_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody is advised to do it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "zip.pth")
    for file, reason in {"model.pth": "Unsupported", "zip.pth": r"it holds \S*open; save model.state_dict"}.items():
        with pytest.raises(GeckoError, match=f"not a state_dict of plain tensors.*: {reason}") as refused:
            open_checkpoint(tmp_path / file)
        assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.filterwarnings("error")
def test_logistics_of_large_numbers_are_0_and_1() -> None:
    large = np.array([[-1e30], [1e30]], np.float32)
    re, im, p, _, _ = cema_coefficients(large, large, large[:, 0], np.ones((2, 1, 2), np.float32))
    assert p.tolist() == [[0, 1]]
    np.testing.assert_allclose(np.hypot(re, im), [[1, 0]])


def safetensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "no safetensors file"),
        (safetensors_file({}, length=2**63), "cut short"),
        (safetensors_file([]), "expected a JSON object"),
        (safetensors_file({"a": 3}), "does not describe tensors"),
        (
            safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
            "incomplete",
        ),
        (
            safetensors_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
            "begin at 0",
        ),
        (
            safetensors_file({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678"),
            "shape's",
        ),
        (
            safetensors_file({"a": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
            "expected one of",
        ),
    ],
)
def test_hostile_safetensors(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(GeckoError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


def test_random_checkpoints_follow_their_seed(tmp_path: Path) -> None:
    config = small_config()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(config, tmp_path / name, "bfloat16", seed)
    files = {n: (tmp_path / n / "model-00001-of-00001.safetensors").read_bytes() for n in "abc"}
    assert files["a"] == files["b"] != files["c"]
    result = convert(config, open_checkpoint(tmp_path / "a"), "q0bf16", tmp_path / "model")
    assert result["embed.weight"].dtype == ml_dtypes.bfloat16
