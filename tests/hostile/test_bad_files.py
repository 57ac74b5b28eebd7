"""Files that are damaged, hostile or of something else: each ends a command with one line, and nothing else happens.

Saved states, servers and chat templates that are programs come with what reads them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.bad_inputs import Inputs, check_refused, edit, edit_header, edit_metadata, link, pipe, sparse
from support.commands import Done

from gecko_mlc.formats.plan import PLAN_MARKER

INDEX, CHAT, SHARD = "tensor-cache.json", "mlc-chat-config.json", "params_shard_0.bin"


class Case(NamedTuple):
    """How an input is made, the command that is given it, and what its line of error holds, as an expression."""

    spoil: Callable[[Inputs], Any]
    command: str
    line: str


def index(change: Callable[[dict[str, Any], list[dict[str, Any]]], Any]) -> Callable[[Inputs], None]:
    """Change the first shard of the index, or its tensors."""
    return lambda inputs: edit(
        inputs.model / INDEX, lambda value: change(value["records"][0], value["records"][0]["records"])
    )


def chat(**changes: Any) -> Callable[[Inputs], None]:
    """Change fields of the chat config."""
    return lambda inputs: edit(inputs.model / CHAT, lambda value: value.update(changes))


def config(**changes: Any) -> Callable[[Inputs], None]:
    """Change fields of the checkpoint's config."""
    return lambda inputs: edit(inputs.checkpoint / "config.json", lambda value: value.update(changes))


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Inputs], None]:
    return lambda inputs: edit(inputs.model / "tokenizer.json", change)


def library(change: Callable[[dict[str, Any]], Any]) -> Callable[[Inputs], None]:
    return lambda inputs: edit_metadata(inputs.library, change)


def byte(place: int, value: int) -> Callable[[Inputs], None]:
    """Change a byte of the library."""

    def spoil(inputs: Inputs) -> None:
        data = bytearray(inputs.library.read_bytes())
        data[place] = value
        inputs.library.unlink()
        inputs.library.write_bytes(data)

    return spoil


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Inputs], None]:
    return lambda inputs: edit_header(inputs.checkpoint / "model.safetensors", change)


def checkpoint(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Inputs], None]:
    """Change the tensors of the checkpoint."""

    def spoil(inputs: Inputs) -> None:
        file = inputs.checkpoint / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def shard(inputs: Inputs) -> Path:
    return inputs.model / SHARD


def elsewhere(inputs: Inputs) -> None:
    """The shard lies outside, and a link leads there."""
    shard(inputs).rename(inputs.folder / "elsewhere.bin")
    link(shard(inputs), inputs.folder / "elsewhere.bin")


def nan(inputs: Inputs) -> None:
    values = np.fromfile(shard(inputs), np.float32)
    values[:] = np.nan
    values.tofile(shard(inputs))


WEIGHTS = {
    "a shard that is cut short": Case(
        lambda i: os.truncate(shard(i), 100), "generate", rf"{SHARD}: 100 bytes, expected [\d,]+: the file is damaged"
    ),
    "a tensor past the end": Case(
        index(lambda s, t: t[0].update(byteOffset=s["nbytes"])), "info", rf"{INDEX}: \S+ ends at byte [\d,]+ of a shard"
    ),
    "a negative size": Case(
        index(lambda s, t: t[0].update(nbytes=-1)), "info", rf"{INDEX}: records.0.records.0.nbytes: .* got -1"
    ),
    "a negative offset": Case(
        index(lambda s, t: t[0].update(byteOffset=-8)), "info", rf"{INDEX}: records.0.records.0.byteOffset: .* got -8"
    ),
    "a size of 2^63": Case(
        index(lambda s, t: t[0].update(nbytes=2**63)), "info", rf"{INDEX}: .* but nbytes is 9,223,372,036,854,775,808"
    ),
    "a size of more than 64 bits": Case(
        index(lambda s, t: t[0].update(nbytes=2**64)), "info", rf"{INDEX}: an integer of more than 64 bits, at records"
    ),
    "a shape whose product overflows": Case(
        index(lambda s, t: t[0].update(shape=[2**32, 2**32])), "info", rf"{INDEX}: \S+ of shape \(4294967296, 42949"
    ),
    "a negative shape": Case(index(lambda s, t: t[0].update(shape=[-1, -1])), "info", rf"{INDEX}: .*shape"),
    "too many dimensions": Case(index(lambda s, t: t[0].update(shape=[2**63] * 9999)), "info", rf"{INDEX}: .*shape"),
    "a dtype of another size": Case(
        index(lambda s, t: t[0].update(dtype="float16")), "info", rf"{INDEX}: \S+ of shape .* and float16 has"
    ),
    "tensors that overlap": Case(
        index(lambda s, t: t[1].update(byteOffset=t[0]["byteOffset"] + 4)), "info", rf"{INDEX}: \S+ overlaps the tensor"
    ),
    "a name that is there twice": Case(
        index(lambda s, t: t[1].update(name=t[0]["name"])), "info", rf"{INDEX}: the tensor \S+ is there twice"
    ),
    "a tensor that is missing": Case(
        index(lambda s, t: t[0].update(name="other")), "generate", r"model: the tensor \S+ \[.*\] is missing"
    ),
    "a tensor that is transposed": Case(
        index(lambda s, t: t[0].update(shape=t[0]["shape"][::-1])),
        "generate",
        r"model: rope.cos is \[4, 16\] float32, the library expects \[16, 4\] float32",
    ),
    "weights that are no numbers": Case(nan, "check", r"not all values are finite"),
    "a path upwards": Case(
        index(lambda s, t: s.update(dataPath="../x.bin")), "info", r"dataPath '../x.bin' is not a plain file name"
    ),
    "a path from the root": Case(
        index(lambda s, t: s.update(dataPath="/etc/passwd")), "info", r"dataPath '/etc/passwd' is not a plain file name"
    ),
    "a path with a NUL": Case(
        index(lambda s, t: s.update(dataPath="a\0b")), "info", r"dataPath 'a\\x00b' is not a plain file name"
    ),
    "a path of 4 KB": Case(
        index(lambda s, t: s.update(dataPath="a" * 4096)), "info", r"dataPath 'a{80}' is not a plain file name"
    ),
    "a path that a terminal obeys": Case(
        index(lambda s, t: s.update(dataPath="\x1b[2J")), "info", r"\\x1b\[2J: no such file"
    ),
    "a link out of the folder": Case(elsewhere, "info", rf"{SHARD}: leads out of the model folder"),
    "a link to itself": Case(lambda i: link(shard(i), SHARD), "info", rf"{SHARD}: "),
    "a link to a device": Case(lambda i: link(shard(i), "/dev/zero"), "info", rf"{SHARD}: "),
    "a pipe": Case(lambda i: pipe(shard(i)), "info", rf"{SHARD}: "),
    "a folder of a shard's name": Case(lambda i: (shard(i).unlink(), shard(i).mkdir()), "info", rf"{SHARD}: "),
}


def pickled(name: str) -> Callable[[Inputs], None]:
    """A checkpoint that would run a command."""

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, ("executed",)

    def spoil(inputs: Inputs) -> None:
        (inputs.checkpoint / "model.safetensors").unlink()
        torch.save({"embed.weight": Hostile()}, inputs.checkpoint / name)

    return spoil


def length(number: int) -> Callable[[Inputs], None]:
    def spoil(inputs: Inputs) -> None:
        file = inputs.checkpoint / "model.safetensors"
        file.write_bytes(number.to_bytes(8, "little") + file.read_bytes()[8:])

    return spoil


def moved(by: int) -> Callable[[dict[str, Any]], None]:
    """Every tensor but the first `by` bytes further on."""

    def change(value: dict[str, Any]) -> None:
        for entry in sorted((e for e in value.values() if "shape" in e), key=lambda e: e["data_offsets"])[1:]:
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]

    return change


CHECKPOINTS = {
    "a pickle that runs code": Case(
        pickled("model.pth"), "convert", r"model.pth: .*nothing else is loaded .*posix.mkdir"
    ),
    "a pickle of another name": Case(pickled("pytorch_model.bin"), "convert", r"pytorch_model.bin: .*posix.mkdir"),
    "a header of 2^63 bytes": Case(
        length(2**63), "convert", r"model.safetensors: .* a header of 9,223,372,036,854,775,808 bytes"
    ),
    "tensors that overlap": Case(header(moved(-4)), "convert", r"model.safetensors: .* expected it to begin at"),
    "holes between tensors": Case(header(moved(4)), "convert", r"model.safetensors: .* expected it to begin at"),
    "a tensor that is missing": Case(
        checkpoint(lambda t: t.pop("output.final_norm.bias")), "convert", r"output.final_norm.bias"
    ),
    "a tensor too many": Case(
        checkpoint(lambda t: t.update({"layers.7.mega.gamma": np.zeros(4, np.float32)})),
        "convert",
        r"layers.7.mega.gamma",
    ),
    "a tensor that is transposed": Case(
        checkpoint(lambda t: t.update({"embed.weight": np.ascontiguousarray(t["embed.weight"].T)})),
        "convert",
        r"embed.weight .*\[24, 300\].*\[300, 24\]",
    ),
    "weights that are no numbers": Case(
        checkpoint(lambda t: t.update({"embed.weight": np.full((300, 24), np.inf, np.float32)})),
        "convert",
        r"embed.weight",
    ),
    "no heads": Case(config(num_heads=0), "compile", r"config.json: num_heads: .* got 0"),
    "a chunk of nothing": Case(config(chunk_size=0), "compile", r"config.json: chunk_size: .* got 0"),
    "heads that do not divide": Case(
        config(num_heads=5), "compile", r"config.json: z_dim=16 must be a multiple of num_h"
    ),
    "a thousand million layers": Case(
        config(num_layers=10**9), "compile", r"config.json: num_layers: .* got 1000000000"
    ),
    "a size that is no number": Case(config(model_dim="24"), "compile", r"config.json: model_dim: .* got '24'"),
    "another vocabulary than the tokenizer's": Case(
        config(vocab_size=200), "convert", r"tokenizer.json: its largest id is 262, but the model's vocabulary is 200"
    ),
    "a tied head of another size": Case(
        config(share_emb=True, output_size=7), "compile", r"config.json: share_emb=true .*output_size=7"
    ),
    "a token that is none": Case(
        config(eos_token_id=10**9), "convert", r"config.json: eos_token_id: 1000000000 is no id"
    ),
}

TOKENIZERS = {
    "an id that the model lacks": Case(
        tokenizer(lambda t: t["model"]["vocab"].update({"zz": 10**6})),
        "generate",
        r"tokenizer.json: its largest id is 10000",
    ),
    "an id that is no number": Case(
        tokenizer(lambda t: t["model"]["vocab"].update({"zz": -1})), "generate", r"tokenizer.json: not a tokenizer: "
    ),
    "merges of what is not there": Case(
        tokenizer(lambda t: t["model"]["merges"].append(["x" * 10**6, "y"])),
        "generate",
        r"tokenizer.json: not a tokenizer: .*x",
    ),
    "no tokenizer": Case(lambda i: (i.model / "tokenizer.json").unlink(), "generate", r"tokenizer.json: no such file"),
}

LIBRARIES = {
    "another model's": Case(
        library(lambda m: m["model_config"].update(model_dim=48)),
        "generate",
        r"lib.so: compiled for another model: model_d",
    ),
    "another quantization's": Case(
        library(lambda m: m.update(quantization="q4f16_1")),
        "generate",
        r"lib.so: compiled for q4f16_1, the model folder is",
    ),
    "another ABI's": Case(
        library(lambda m: m.update(abi_version=99)), "generate", r"lib.so: ABI version 99, expected \d+"
    ),
    "an unknown target's": Case(
        library(lambda m: m["target"].update(kind="abacus")),
        "generate",
        r"lib.so: unknown target 'abacus'; expected one of",
    ),
    "another architecture's": Case(byte(18, 0xF3), "generate", r"lib.so: "),
    "no library": Case(
        lambda i: (i.library.unlink(), i.library.write_bytes(b"\x7fELF")), "generate", r"lib.so: not a libr"
    ),
    "a negative shape": Case(
        library(lambda m: m["state"][0].update(shape=[-1])),
        "library",
        r"lib.so: its metadata: state.0.shape.0: .*got -1",
    ),
    "a state of 2^80 bytes": Case(
        library(lambda m: m["state"][0].update(shape=[2**40] * 2)),
        "generate",
        r"lib.so: its metadata: state.0: more than 9,007,199,254,740,991 bytes",
    ),
    "no slots": Case(
        library(lambda m: m.update(max_batch_size=0)), "library", r"lib.so: its metadata: max_batch_size: .*0"
    ),
    "no target": Case(library(lambda m: m.update(target={})), "library", r"lib.so: its metadata: target: the kind"),
    "a plan of another version": Case(
        lambda i: (i.library.unlink(), i.library.write_bytes(PLAN_MARKER + b'{"plan_version": 7}\0')),
        "plan",
        r"lib.so: plan version 7, expected 1; compile it again",
    ),
    "a plan that is nested": Case(
        lambda i: (i.library.unlink(), i.library.write_bytes(PLAN_MARKER + b'{"a": ' + b"[" * 99_999 + b"\0")),
        "plan",
        r"lib.so: nested deeper than 64",
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, cases in {
            "weights": WEIGHTS,
            "checkpoint": CHECKPOINTS,
            "tokenizer": TOKENIZERS,
            "library": LIBRARIES,
        }.items()
        for name in cases
    ],
)
def test_one_line_says_what_is_wrong(
    kind: str, name: str, inputs: Inputs, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"weights": WEIGHTS, "checkpoint": CHECKPOINTS, "tokenizer": TOKENIZERS, "library": LIBRARIES}[kind][name]
    monkeypatch.chdir(inputs.folder)
    case.spoil(inputs)
    check_refused(run(inputs.command(case.command)), case.line)
    assert not (inputs.folder / "executed").exists()
    assert not (inputs.output / "tensor-cache.json").exists()


# Every JSON file, and the command that reads it.
JSON_FILES = {
    "model/mlc-chat-config.json": "info",
    "model/tensor-cache.json": "info",
    "model/tokenizer.json": "generate",
    "checkpoint/config.json": "compile",
    "checkpoint/generation_config.json": "convert",
    "ids.json": "logits",
}
JSON_FAULTS: dict[str, tuple[Callable[[Path], Any] | bytes, str]] = {
    "1 GB": (sparse, "1,073,741,824 bytes, expected at most"),
    "nested": (b'{"a":' * 100_000, "(nested deeper than 64|not a tokenizer)"),
    "no JSON": (b"{", ""),
    "empty": (b"", ""),
    "not UTF-8": (b'{"a": "\xff"}', "(not JSON: |not a tokenizer: |not UTF-8)"),
    "a list of lists": (b"[[]]", ""),
    "a pipe": (pipe, "not a regular file"),
    "a folder": (lambda path: (path.unlink(missing_ok=True), path.mkdir()), "(a folder, expected a file|no such file)"),
    "a link to a device": (lambda path: link(path, "/dev/zero"), "not a regular file"),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
@pytest.mark.parametrize("file", JSON_FILES)
def test_every_json_file_is_read_with_care(file: str, fault: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    spoil, line = JSON_FAULTS[fault]
    path = inputs.folder / file
    if isinstance(spoil, bytes):
        path.unlink(missing_ok=True)
        path.write_bytes(spoil)
    else:
        spoil(path)
    check_refused(run(inputs.command(JSON_FILES[file])), f"{path.name}.*{line}|no {path.name}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('"temperature": 1, "temperature": 2', "the key 'temperature' is there twice"),
        ('"temperature": NaN', "not JSON: NaN is no number, at temperature"),
        ('"temperature": 1e400', "not JSON: Infinity is no number, at temperature"),
        ('"temperature": ' + "9" * 100_000, "an integer of more than 64 bits"),
        ('"vocab_size": ' + "9" * 4000, "an integer of more than 64 bits, at vocab_size"),
        (r'"quantization": "\ud800"', "a lone surrogate, which is no character, at quantization"),
        (r'"quantization": "\u001b[31mred"', r"compiled for q0f32, the model folder is \\x1b\[31mred"),
        ('"quantization": null', "quantization: Field required"),
        ('"model_type": "llama"', "model_type is 'llama', expected 'gecko'"),
        ('"eos_token_id": 10', "eos_token_id: 10 is no id of the vocabulary, which has 5"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_fields(text: str, line: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    """What is in valid JSON, and must not be."""
    path = inputs.model / CHAT
    fields = json.loads(path.read_text())
    for name in re.findall(r'"(\w+)":', text):
        fields.pop(name, None)
    if "10 is no id" in line:
        fields["vocab_size"] = fields["model_config"]["vocab_size"] = 5
    path.write_text(json.dumps(fields)[:-1] + f", {text}}}")
    check_refused(run(inputs.command("generate")), line)


def test_a_byte_order_mark_is_no_fault(inputs: Inputs, run: Callable[..., Done]) -> None:
    for file in ("model/mlc-chat-config.json", "model/tensor-cache.json", "ids.json"):
        path = inputs.folder / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(inputs.command("logits")).returncode == 0
