"""Whatever is in a file, reading it gives a valid object or one `GeckoError` with the file's name in it.

Explicit examples are what failed once. `pytest tests/hostile/test_parsers.py --hypothesis-profile=long` tries many more
files than `make test` does.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save
from support.hostile import changed, changed_bytes, json_files, json_text
from support.metadata import metadata
from support.models import small_config
from support.tokenizer_kinds import KINDS

from gecko_mlc.cli.logits import read_ids
from gecko_mlc.config import GeckoConfig, dump_config
from gecko_mlc.convert.chat_config import find_config, plan_files, read_model_config
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.shards import Part, write_weights
from gecko_mlc.formats.chat_config import CHAT_CONFIG, ChatConfig, read_chat_config, write_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.expression import evaluate, infix, parse_expression
from gecko_mlc.formats.files import parse_json, read_json
from gecko_mlc.formats.library import METADATA_MARKER, Metadata, TensorSpec, read_metadata
from gecko_mlc.formats.plan import PLAN_MARKER, dump_plan, parse_plan, read_plan
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.templates import TEMPLATES
from gecko_mlc.formats.weights import CONVERSION, TENSOR_CACHE, WORKING_FOLDER, check_folder, read_tensor_cache
from gecko_mlc.runtime.text.templates import turn
from gecko_mlc.runtime.text.tokenizer import TOKENIZER, Tokenizer
from gecko_mlc.trust import TRUSTED, check_trusted, is_trusted

PLANS = Path(__file__).parents[1] / "plans"
Value = TypeVar("Value")

CONFIG = {**small_config().model_dump(), "model_type": "gecko", "bos_token_id": 3, "eos_token_id": 0}
GENERATION = {"bos_token_id": 3, "eos_token_id": [0, 1], "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
CHAT = ChatConfig(
    quantization="q0f32",
    config=small_config().model_dump(),
    vocab_size=53,
    tokenizer_files=[TOKENIZER],
    conv_template=TEMPLATES["chatml"],
    eos_token_id=[0, 1],
)
INDEX = {
    "metadata": {"ParamSize": 2},
    "records": [
        {
            "dataPath": "params_shard_0.bin",
            "format": "raw-shard",
            "nbytes": 40,
            "md5sum": "x",
            "records": [
                {"name": "a", "shape": [2, 4], "dtype": "float32", "format": "raw", "nbytes": 32, "byteOffset": 0},
                {"name": "b", "shape": [4], "dtype": "float32", "format": "f32-to-bf16", "nbytes": 8, "byteOffset": 32},
            ],
        }
    ],
}
MANY_DIMENSIONS = json.dumps(INDEX).replace("[2, 4]", str([2**63] * 9999)).encode()
TENSORS = {
    "embed.weight": np.ones((2, 3), np.float32),
    "layers.0.mega.gamma": np.ones(4, np.float16),
    "output.final_norm.bias": np.ones((), np.int64),
}
METADATA = json.loads(metadata("gecko-demo", "cpu", quantization("q4f16_1")).model_dump_json(by_alias=True))
METADATA.update(parameters=METADATA["parameters"][:3], state=METADATA["state"][:2], workspace_bytes={"decode": 64})
CUDA = {"kind": "cuda", "architectures": [80], "ptx": [90], "minimum_cuda": [12, 4]}
TEXT = "the king\n\nis <s>dead, é\U0001f600"
PLAN = json.loads((PLANS / "minimal.json").read_text())


@functools.cache
def tokenizer_json(kind: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(KINDS[kind]().to_str())
    return result


def state_dict() -> bytes:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in TENSORS.items()}, file)
    return file.getvalue()


def attempt(read: Callable[[], Value], name: str) -> Value | None:
    """What is read; None where it is refused with one error that has the file's name and is fit for a terminal."""
    try:
        return read()
    except GeckoError as error:
        text = str(error)
        assert name in text
        assert len(text) < 50_000
        assert text.replace("\n", "").isprintable()
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@given(json_files(CONFIG))
@example(data=b'{"a": [], "": 1e400}')
@example(data=b'{"a": ' + b"9" * 5000 + b"}")
def test_json(folder: Path, data: bytes) -> None:
    (folder / "x.json").write_bytes(data)
    value = attempt(lambda: read_json(folder / "x.json"), "x.json")
    if value is not None:
        assert parse_json(json.dumps(value), "x") == value


@given(json_files(CONFIG))
def test_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    config = attempt(lambda: read_model_config(folder / "config.json"), "config.json")
    if config is not None:
        assert GeckoConfig(**json.loads(dump_config(config))) == config


@given(json_files(GENERATION))
@example(data=b'{"temperature": []}')
def test_generation_config(folder: Path, data: bytes) -> None:
    checkpoint, model = folder / "checkpoint", folder / "generated"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    (checkpoint / "generation_config.json").write_bytes(data)
    done = attempt(lambda: plan_files(checkpoint, quantization("q0f32")), "config.json")
    if done is not None:
        done.write(model)
        chat_config = read_chat_config(model)
        assert all(token >= 0 for token in chat_config.stop_tokens())


@given(json_files(json.loads(CHAT.model_dump_json(by_alias=True))))
def test_chat_config(folder: Path, data: bytes) -> None:
    """What is read can be used: its config, its sampling, its template."""
    model = folder / "chat"
    model.mkdir(exist_ok=True)
    (model / CHAT_CONFIG).write_bytes(data)
    chat_config = attempt(lambda: read_chat_config(model), CHAT_CONFIG)
    if chat_config is not None:
        write_chat_config(model, chat_config)
        assert read_chat_config(model) == chat_config
        attempt(lambda: find_config(str(model)), CHAT_CONFIG)
        assert all(isinstance(token, int) for token in chat_config.stop_tokens())
        "".join(part.text for part in turn(chat_config.conv_template, "hi", first=True)).encode()


@given(json_files(INDEX))
@example(data=MANY_DIMENSIONS)
def test_tensor_cache(folder: Path, data: bytes) -> None:
    model = folder / "weights"
    model.mkdir(exist_ok=True)
    (model / "params_shard_0.bin").write_bytes(bytes(40))
    (model / TENSOR_CACHE).write_bytes(data)
    cache = attempt(lambda: read_tensor_cache(model), "weights")
    if cache is not None:
        records = [record for shard in cache.records for record in shard.records]
        assert sum(record.nbytes for record in records) <= 40 * len(cache.records)
        for fault in check_folder(model):
            assert fault.isprintable()


@given(json_files({"command": "gecko-mlc convert_weight x", "identity": "y"}))
@example(data=rb'{"command": "\u001b[2J", "identity": "y"}')
@example(data=json.dumps({"command": "a" * 10**5}).encode())
def test_what_an_interrupted_conversion_left(folder: Path, data: bytes) -> None:
    model = folder / "interrupted"
    (model / WORKING_FOLDER).mkdir(exist_ok=True, parents=True)
    (model / WORKING_FOLDER / CONVERSION).write_bytes(data)
    assert attempt(lambda: read_tensor_cache(model), "interrupted") is None


@given(changed_bytes(save(TENSORS)) | json_files({}).map(lambda header: len(header).to_bytes(8, "little") + header))
def test_safetensors(folder: Path, data: bytes) -> None:
    _check_checkpoint(folder / "x.safetensors", data)


SAFETENSORS = json.loads(save(TENSORS)[8 : 8 + int.from_bytes(save(TENSORS)[:8], "little")])


@given(changed(SAFETENSORS), st.integers(0, 64))
def test_safetensors_header(folder: Path, header: Any, size: int) -> None:
    text = json_text(header).encode()
    _check_checkpoint(folder / "x.safetensors", len(text).to_bytes(8, "little") + text + bytes(size))


@given(changed_bytes(state_dict()) | st.binary(max_size=64))
def test_pytorch(folder: Path, data: bytes) -> None:
    _check_checkpoint(folder / "x.pth", data)


@given(st.data())
def test_pytorch_archive(folder: Path, data: st.DataObject) -> None:
    """One of the files of the archive is another, with the right checksum."""
    with zipfile.ZipFile(io.BytesIO(state_dict())) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from(sorted(contents)))
    contents[name] = data.draw(changed_bytes(contents[name]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    _check_checkpoint(folder / "x.pth", file.getvalue())


@given(json_files({"metadata": {}, "weight_map": dict.fromkeys(TENSORS, "x.safetensors")}))
def test_safetensors_index(folder: Path, data: bytes) -> None:
    checkpoint = folder / "sharded"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "x.safetensors").write_bytes(save(TENSORS))
    (checkpoint / "model.safetensors.index.json").write_bytes(data)
    attempt(lambda: open_checkpoint(checkpoint), "sharded")


def _check_checkpoint(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    checkpoint = attempt(lambda: open_checkpoint(file), file.name)
    if checkpoint is not None:
        for name, (shape, dtype) in checkpoint.tensors.items():
            value = attempt(functools.partial(checkpoint.read, name), file.name)
            assert value is None or (value.shape, value.dtype) == (shape, dtype)


@given(json_files([1, 2, 3]))
def test_token_ids(folder: Path, data: bytes) -> None:
    (folder / "ids.json").write_bytes(data)
    ids = attempt(lambda: read_ids(folder / "ids.json"), "ids.json")
    assert ids is None or all(type(i) is int for i in ids)


@given(json_files(METADATA) | json_files({**METADATA, "target": {**METADATA["target"], **CUDA}}))
@example(data=b"[" * 100_000)
@example(data=json.dumps({**METADATA, "target": {}}).encode())
def test_metadata(folder: Path, data: bytes) -> None:
    found = _read_library(folder, METADATA_MARKER + data + b"\0", read_metadata)
    if found is not None:
        assert Metadata.model_validate_json(found.model_dump_json(by_alias=True)) == found
        assert all(extent >= 0 for tensor in (*found.parameters, *found.state) for extent in tensor.shape)


@given(json_files(PLAN))
def test_plan(folder: Path, data: bytes) -> None:
    plan = _read_library(folder, PLAN_MARKER + data + b"\0", read_plan)
    if plan is not None:
        assert parse_plan(dump_plan(plan), "x") == plan
        for name, function in plan.functions.items():
            sizes = {symbol: min(2, plan.bounds[symbol]) for symbol in function.symbols}
            attempt(functools.partial(plan.launches, name, **sizes), name)


@given(changed_bytes(b"code" + METADATA_MARKER + json.dumps(METADATA).encode() + b"\0" + PLAN_MARKER + b"{}\0"))
def test_library(folder: Path, data: bytes) -> None:
    _read_library(folder, data, read_metadata)
    _read_library(folder, data, read_plan)


def _read_library(folder: Path, data: bytes, read: Callable[[Path], Value]) -> Value | None:
    (folder / "x.so").write_bytes(data)
    return attempt(lambda: read(folder / "x.so"), "x.so")


@given(changed(["select", ["<", "n", 1], ["min", ["/", ["+", "n", 255], 256], "b"], ["not", "b"]]), st.integers(1, 9))
def test_expression(value: Any, size: int) -> None:
    """The words of a fault are the place's, which the plan's reader adds."""
    try:
        expression = parse_expression(value)
        assert -(2**31) <= evaluate(expression, {"n": size, "b": size}) < 2**31
    except ValueError:
        return
    assert infix(expression).isprintable()


def tokenizer_files() -> st.SearchStrategy[bytes]:
    """Changed files of each kind of tokenizer."""
    return st.sampled_from(sorted(KINDS)).flatmap(lambda kind: json_files(tokenizer_json(kind)))


@given(tokenizer_files())
def test_tokenizer(folder: Path, data: bytes) -> None:
    """What is loaded encodes, anywhere in a stream, and decodes."""
    (folder / TOKENIZER).write_bytes(data)
    tokenizer = attempt(lambda: Tokenizer(folder, 1000), TOKENIZER)
    if tokenizer is not None:
        for begins in (True, False):
            ids = attempt(functools.partial(tokenizer.encode, TEXT, begins=begins), "")
            if ids is not None:
                assert all(0 <= i < 1000 for i in ids)
                attempt(functools.partial(tokenizer.decode, [*ids, 0, 999]), "")


@given(json_files({"libraries": [{"sha256": "0" * 64, "path": "lib.so"}, {"sha256": "1" * 64, "path": "/x/lib.so"}]}))
@example(data=rb'{"libraries": [{"sha256": "0", "path": "\u0000"}]}')
def test_trusted(folder: Path, data: bytes) -> None:
    """Nothing is trusted for a list that is damaged, and nothing fails."""
    library = folder / "untrusted.so"
    library.write_bytes(b"code")
    (folder / TRUSTED).write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GECKO_MLC_HOME", str(folder))
        assert not is_trusted(library)
        assert attempt(lambda: check_trusted(library), "untrusted.so") is None


@given(json_files({"command": "x", "identity": "y"}))
@example(data=b"[1]")
def test_a_conversion_goes_on_whatever_was_left(folder: Path, data: bytes) -> None:
    model = folder / "resumed"
    work = model / WORKING_FOLDER
    work.mkdir(exist_ok=True, parents=True)
    (work / CONVERSION).write_bytes(data)
    parameters = {"embed.weight": np.ones((2, 3), np.float32)}
    part = Part((TensorSpec(name="x", shape=(2, 3), dtype="float32"),), lambda: list(parameters.values()))
    write_weights(model, [part], 6, "z", "", lambda done, total: None, lambda text: None)
    assert len(read_tensor_cache(model).records) == 1
