"""The command line as its users run it, its folders and libraries, and what it measures."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.commands import Done, finish, start
from support.models import Golden, load_golden

from gecko_mlc.runtime.devices import nvidia


class Prepared:
    """A golden checkpoint, converted and compiled through the command line."""

    def __init__(self, golden: Golden, folder: Path, run: Callable[..., Done]) -> None:
        self.golden, self.folder = golden, folder
        self.model, self.library = folder / "model", folder / "model.so"
        folder.mkdir()
        save_file(golden.parameters, folder / "model.safetensors")
        (folder / "config.json").write_text(golden.config.model_dump_json())
        (folder / "heads.json").write_text(golden.config.model_copy(update={"num_heads": 5}).model_dump_json())
        (folder / "ids.json").write_text(json.dumps(golden.tokens))
        for arguments in (
            ["convert_weight", folder, "--quantization", "q0f32", "-o", self.model],
            ["compile", self.model, "-o", self.library],
        ):
            done = run(*arguments)
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(gecko: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("cli")
    return {name: Prepared(load_golden(name), folder / name, gecko) for name in ("public_a", "public_b")}


@pytest.mark.parametrize(("name", "split"), [("public_a", "5,80,2"), ("public_b", "1,78,1"), ("public_a", None)])
def test_logits(name: str, split: str | None, prepared, inside, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The acceptance command: logits within 2e-5 of float64, and the calls that were made."""
    p = prepared[name]
    options = [] if split is None else ["--split", split]
    tokens, output = p.folder / "ids.json", tmp_path / "out.safetensors"
    done = inside("logits", p.model, "--model-lib", p.library, "--tokens", tokens, *options, "-o", output)
    assert done.returncode == 0, done.stderr
    with safe_open(output, "np") as file:
        logits, metadata = file.get_tensor("logits"), file.metadata()
    assert np.abs(logits - p.golden.logits).max() < 2e-5
    calls = [call.split() for call in json.loads(metadata["calls"])]
    assert sum(int(count) for _, count in calls) == len(p.golden.tokens)
    assert all((function == "decode") == (count == "1") for function, count in calls)


def test_info_knows_folders_libraries_and_this_machine(prepared, inside) -> None:  # type: ignore[no-untyped-def]
    p = prepared["public_a"]
    assert "chunk_size" in inside("info", p.model, "--check").stdout
    assert "all checksums agree" in inside("info", p.model, "--check").stdout
    assert re.search(r"ABI.*state dtype +float32\n", inside("info", p.library).stdout, re.DOTALL)
    assert "usable cores" in inside("info").stdout


def test_info_says_what_a_gpu_misses(inside, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(nvidia, "driver_version", lambda: None)
    monkeypatch.setattr(nvidia, "capability", lambda index=0: None)
    assert "install the driver, for CUDA 13.0 or later" in inside("info").stdout
    monkeypatch.setattr(nvidia, "driver_version", lambda: (12, 4))
    monkeypatch.setattr(nvidia, "capability", lambda index=0: 90)
    monkeypatch.setattr(nvidia, "name", lambda index=0: "Some GPU")
    monkeypatch.setattr(nvidia, "find_cudart", lambda: None)
    said = inside("info").stdout
    assert "Some GPU, sm_90" in said
    assert "for CUDA 12.4, too old: update it to one for CUDA 13.0 or later" in said
    assert "no libcudart.so.13 (to run on NVIDIA GPUs: pip install nvidia-cuda-runtime)" in said


WRONG: dict[str, tuple[list[str], str]] = {
    "no such folder": (["info", "{model}/nothing"], "no such library"),
    "not a model folder": (["generate", "{folder}", "-p", "x"], "not a model folder"),
    "unknown model": (["generate", "gecko-nothing", "-p", "x"], "no such model folder"),
    "another model's library": (
        ["logits", "{model}", "--model-lib", "{other}", "--tokens", "{folder}/ids.json", "-o", "{folder}/o"],
        "compiled for another model: num_layers 2 instead of 3",
    ),
    "no library": (["bench", "{model}", "--model-lib", "{model}/none.so"], "no such library"),
    "not a library": (["bench", "{model}", "--model-lib", "{folder}/ids.json"], "not a library of gecko-mlc"),
    "split": (
        ["logits", "{model}", "--model-lib", "{lib}", "--tokens", "{folder}/ids.json", "--split", "1,2", "-o", "o"],
        "adds up to 3, but there are 87 tokens",
    ),
    "no tokenizer": (["generate", "{model}", "--model-lib", "{lib}", "-p", "x"], "text needs the model's tokenizer"),
    "quantization": (
        ["compile", "gecko-demo", "--quantization", "q9", "-o", "x.so"],
        "--quantization: should be q0f32",
    ),
    "state dtype": (
        ["compile", "gecko-demo", "--state-dtype", "int4", "-o", "x.so"],
        "--state-dtype: should be float32",
    ),
    "state dtype of a library": (
        ["bench", "{model}", "--model-lib", "{lib}", "--state-dtype", "int8"],
        "is compiled already: its state dtype cannot be chosen",
    ),
    "suffix": (["compile", "gecko-demo", "-o", "x.exe"], "unknown suffix"),
    "architecture": (["compile", "gecko-demo", "--arch", "sm_99", "-o", "x.so"], "unknown architecture 'sm_99'"),
    "heads": (["compile", "{folder}/heads.json", "-o", "x.so"], "z_dim=32 must be a multiple of num_heads=5"),
    "preset": (["compile", "gecko-9b", "-o", "x.so"], "no preset (gecko-7b"),
    "overrides": (["compile", "gecko-demo", "--overrides", "slots=2", "-o", "x.so"], "max_batch_size"),
    "checkpoint": (
        ["convert_weight", "{folder}/config.json", "--source", "{model}", "-o", "{folder}/n"],
        "expected .safetensors or",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str, prepared, inside) -> None:  # type: ignore[no-untyped-def]
    a, b = prepared["public_a"], prepared["public_b"]
    arguments, message = WRONG[name]
    places = {"model": a.model, "folder": a.folder, "lib": a.library, "other": b.library}
    before = sorted(a.folder.rglob("*"))
    done = inside(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(a.folder.rglob("*")) == before


def test_a_library_of_another_quantization_is_refused(prepared, inside, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    p = prepared["public_a"]
    half = tmp_path / "half"
    assert inside("convert_weight", p.folder, "--quantization", "q0f16", "-o", half).returncode == 0
    done = inside("bench", half, "--model-lib", p.library)
    assert done.returncode == 1
    assert "compiled for q0f32, the model folder is q0f16" in done.stderr


def test_bench_formats(prepared, inside, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    p = prepared["public_a"]
    options = ["--model-lib", p.library, "-p", "20", "-n", "3", "-r", "2", "-d", "0,40"]
    report = json.loads(inside("bench", p.model, *options, "--format", "json").stdout)
    assert report["schema_version"] == 2
    assert [(m["test"], m["tokens"], m["depth"]) for m in report["measurements"]] == [
        ("prefill", 20, 0),
        ("decode", 3, 0),
        ("prefill", 20, 40),
        ("decode", 3, 40),
    ]
    assert all(m["tokens_per_second"] > 0 and m["percent_of_ceiling"] > 0 for m in report["measurements"])
    assert report["ceilings"]["memory_gb_per_second"] > 0
    rows = list(csv.reader(inside("bench", p.model, *options, "--format", "csv").stdout.splitlines()))
    assert rows[0][:3] == ["test", "tokens", "depth"]
    assert len(rows) == 5
    assert inside("bench", p.model, *options, "--format", "md", "-o", tmp_path / "b.md").returncode == 0
    assert (tmp_path / "b.md").read_text().count("\n|") == 6


HELD_OUT = str(resources.files("gecko_mlc.demo") / "held_out.txt")


def test_eval(inside) -> None:  # type: ignore[no-untyped-def]
    done = inside("eval", "gecko-demo", HELD_OUT, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["complete"]
    assert report["perplexity"]["mean"] == pytest.approx(127.52, rel=1e-3)
    assert report["bits_per_byte"] == pytest.approx(2.1485, rel=1e-3)
    assert report["comparison"] is None
    # All but the first token's.
    assert 0 < Path(HELD_OUT).stat().st_size - report["bytes"] < 10


def test_eval_of_standard_input_beside_a_baseline(gecko) -> None:  # type: ignore[no-untyped-def]
    text = Path(HELD_OUT).read_text()[:5000]
    done = gecko("eval", "gecko-demo", "-", "--baseline", "gecko-demo", text=text)
    assert done.returncode == 0, done.stderr
    assert re.search(r"perplexity ratio +1\.000000 ± 0\.000000", done.stdout)
    assert "100.00 %" in done.stdout


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "text.txt: No such file or directory"),
        (b"", [], "no token to predict"),
        (b"\x89PNG\r\n", [], "text.txt: byte 0 is not UTF-8"),
        (b"a\0b", [], "text.txt: there are zero bytes in it"),
        (b"words", ["--baseline-lib", "x.so"], "give the model folder with --baseline"),
        (b"words", ["--baseline", "nothing"], "nothing: no such model folder"),
    ],
)
def test_eval_says_what_is_wrong(  # type: ignore[no-untyped-def]
    content: bytes | None, options: list[str], message: str, inside, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    done = inside("eval", "gecko-demo", tmp_path / "text.txt", *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_ctrl_c_in_eval_says_what_was_measured(home: Path) -> None:
    process = start(home, "eval", "gecko-demo", "-", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    # A pipe holds 64 KiB, and as much is read at a time: with all of this in it, the first is measured.
    process.stdin.write("Jerusalem " * 13_500)
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert "interrupted; this is what was measured so far" in err
    assert process.returncode == 130
    report = json.loads(out)
    assert not report["complete"]
    assert 0 < report["bytes"] < 135_000
