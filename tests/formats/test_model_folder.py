"""Model folders and JSON that are damaged or hostile: one clear error, nothing read outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm
from support.models import small_config
from support.player import NumPyPlayer
from tvm.contrib.tvmjs import dump_tensor_cache

from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.random import write_random_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import atomic_write, read_json
from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.library import Parameter
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.weights import check_folder, read_tensor_cache
from gecko_mlc.runtime.parameters import ParameterReader


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(small_config(), folder / "checkpoint")
    convert_weights(small_config(), open_checkpoint(folder / "checkpoint"), quantization("q0f32"), folder / "model")
    return folder / "model"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def first(index: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = index["records"][0]["records"][0]
    return record


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "past_the_end": (lambda i: first(i).update(byteOffset=2**40), "ends at byte"),
    "negative_size": (lambda i: first(i).update(nbytes=-1), "nbytes"),
    "huge_size": (lambda i: first(i).update(nbytes=2**63), "nbytes is 9,223,372,036,854,775,808"),
    "shape_overflow": (lambda i: first(i).update(shape=[2**62, 2**62]), "has"),
    "negative_shape": (lambda i: first(i).update(shape=[-2, -8]), "shape"),
    "wrong_dtype": (lambda i: first(i).update(dtype="float16"), "but nbytes is"),
    "unknown_dtype": (lambda i: first(i).update(dtype="object"), "expected raw or f32-to-bf16 and one of"),
    "overlap": (lambda i: i["records"][0]["records"][1].update(byteOffset=0), "overlaps"),
    "twice": (lambda i: i["records"][0]["records"][1].update(name=first(i)["name"]), "is there twice"),
    "parent": (lambda i: i["records"][0].update(dataPath="../x.bin"), "not a plain file name"),
    "absolute": (lambda i: i["records"][0].update(dataPath="/etc/passwd"), "not a plain file name"),
    "nul": (lambda i: i["records"][0].update(dataPath="a\0b"), "not a plain file name"),
    "long": (lambda i: i["records"][0].update(dataPath="a" * 4096), "not a plain file name"),
    "absent": (lambda i: i["records"][0].update(dataPath="other.bin"), "no such file"),
    "no_records": (lambda i: i.pop("records"), "records: Field required"),
}


@pytest.mark.parametrize("name", EDITS)
def test_hostile_index(name: str, folder: Path) -> None:
    edit, message = EDITS[name]
    path = folder / "tensor-cache.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))
    with pytest.raises(GeckoError, match=message):
        read_tensor_cache(folder)


def test_a_shard_that_git_lfs_has_not_fetched(folder: Path) -> None:
    (folder / "params_shard_0.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(GeckoError, match=r"params_shard_0.bin: a pointer of Git LFS .* `git lfs pull`"):
        read_tensor_cache(folder)


def test_truncated_shard(folder: Path) -> None:
    shard = folder / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(GeckoError, match="the file is damaged or incomplete"):
        read_tensor_cache(folder)


def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    shard = folder / "params_shard_0.bin"
    shard.rename(tmp_path / "elsewhere.bin")
    shard.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(GeckoError, match="leads out of the model folder"):
        read_tensor_cache(folder)


def test_check_finds_a_flipped_bit_and_a_nan(folder: Path) -> None:
    assert check_folder(folder) == []
    shard = folder / "params_shard_0.bin"
    values = np.fromfile(shard, np.float32)
    values[100] = np.nan
    values.tofile(shard)
    faults = " ".join(check_folder(folder))
    assert "the sha256 differs" in faults
    assert "the md5 differs" in faults
    assert "not all values are finite" in faults


def load(folder: Path, expected: list[Parameter]) -> list[Any]:
    with ParameterReader(folder, expected) as reader:
        return reader.load(NumPyPlayer({}))


@pytest.mark.parametrize("room", [-1, 0, 100, None])
def test_all_is_read_however_little_room_there_is(room: int | None, folder: Path) -> None:
    """Fewer shards at a time."""
    parameter = Parameter(name="rope.cos", shape=(16, 4), dtype="float32")
    with ParameterReader(folder, [parameter], room) as reader:
        (tensor,) = reader.load(NumPyPlayer({}))
    np.testing.assert_array_equal(tensor, load(folder, [parameter])[0])


@pytest.mark.parametrize("checksum", ["sha256", "md5"])
def test_a_flipped_bit_is_found_at_load(checksum: str, folder: Path) -> None:
    """By the sha256, or the md5 in folders of MLC's, which have no other."""
    parameter = Parameter(name="rope.cos", shape=(16, 4), dtype="float32")
    if checksum == "md5":
        index = json.loads((folder / "tensor-cache.json").read_text())
        for record in index["records"]:
            del record["sha256"]
        (folder / "tensor-cache.json").write_text(json.dumps(index))
    load(folder, [parameter])
    shard = folder / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    message = f"params_shard_0.bin: the {checksum} differs from tensor-cache.json: the file is damaged; convert the"
    with pytest.raises(GeckoError, match=message):
        load(folder, [parameter])


@pytest.mark.parametrize("encode_format", ["raw", "f32-to-bf16"])
def test_a_folder_of_tvms_own(encode_format: str, tmp_path: Path) -> None:
    """`dump_tensor_cache` stores fp32 as bf16 unless it is told to store it raw."""
    rng = np.random.default_rng(0)
    scheme = quantization("q4f16_1").group
    assert scheme is not None
    layout = GroupLayout(quantization=scheme, lanes=1, code_bits=4)
    matrix = rng.normal(0, 1, (6, 70)).astype(np.float32)
    q_weight, q_scale = scheme.quantize(matrix)
    values = {
        "norm": rng.normal(0, 1, 40).astype(np.float32),
        "half": matrix.astype(np.float16),
        "brain": matrix.astype(ml_dtypes.bfloat16),
        "layer.q_weight": q_weight,
        "layer.q_scale": q_scale,
    }
    tensors = {name: tvm.runtime.tensor(value) for name, value in values.items()}
    dump_tensor_cache(tensors, str(tmp_path), encode_format=encode_format, show_progress=False)
    layer = Parameter(
        name="layer.weight", shape=layout.shape(6, 70), dtype="uint32", outputs=6, inputs=70, layout=layout
    )
    dense = [Parameter(name=n, shape=values[n].shape, dtype=str(values[n].dtype)) for n in ("norm", "half", "brain")]
    expected = [values["norm"], values["half"], values["brain"], layout.pack(q_weight, q_scale, 70)]
    if encode_format == "f32-to-bf16":
        expected[0] = values["norm"].astype(ml_dtypes.bfloat16).astype(np.float32)
    for loaded, value in zip(load(tmp_path, [*dense, layer]), expected, strict=True):
        assert loaded.tobytes() == value.tobytes()
    assert check_folder(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"", "not JSON"),
    ],
)
def test_hostile_json(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(GeckoError, match=message):
        read_json(tmp_path / "x.json")


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
