"""Model folders and JSON that are damaged or hostile: one clear error, nothing read outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_config
from gecko_mlc.runtime.errors import GeckoError
from gecko_mlc.runtime.files import atomic_write, read_json
from gecko_mlc.runtime.parameters import check_folder, read_tensor_cache

from gecko_mlc.checkpoint import open_checkpoint
from gecko_mlc.convert import convert_weights
from gecko_mlc.quantization import quantization
from gecko_mlc.random_checkpoint import write_random_checkpoint


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
    "unknown_dtype": (lambda i: first(i).update(dtype="object"), "expected raw and one of"),
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
    assert "the checksum differs" in faults
    assert "not all values are finite" in faults


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deep"),
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
