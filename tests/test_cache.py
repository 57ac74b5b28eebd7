"""Which library a model folder is run with, and what is made and kept for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.models import small_config

from gecko_mlc import cache, compile_process
from gecko_mlc.api import load_model
from gecko_mlc.cache import demo_folder, library_name, model_library
from gecko_mlc.compile_process import Request, compile_in_process
from gecko_mlc.formats.chat_config import ChatConfig, write_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.templates import TEMPLATES
from gecko_mlc.runtime.devices import nvidia
from gecko_mlc.runtime.library import Library
from gecko_mlc.trust import trust


@pytest.mark.parametrize(
    ("capability", "there", "device", "taken"),
    [
        (90, ("cpu", "cuda"), "auto", "cuda"),
        (None, ("cpu", "cuda"), "auto", "cpu"),
        (90, ("cpu",), "auto", "cpu"),
        (None, ("cuda",), "auto", "cuda"),
        (90, ("cpu", "cuda"), "cpu", "cpu"),
        # Compiled for other GPUs.
        (75, ("cpu", "cuda"), "auto", "cpu"),
        (75, ("cuda",), "auto", "cuda"),
    ],
)
def test_a_library_that_comes_along(
    capability: int | None,
    there: tuple[str, ...],
    device: str,
    taken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(nvidia, "usable", lambda: capability)

    def check_library(path: Path) -> None:
        if capability == 75 and path.stem == "cuda":
            raise GeckoError(f"{path}: compiled for sm_80")

    monkeypatch.setattr(cache, "check_library", check_library)
    for kind in there:
        (tmp_path / library_name(kind)).touch()
        trust(tmp_path / library_name(kind))
    assert model_library(tmp_path, device) == tmp_path / library_name(taken)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder for the compiler, and a cold home folder."""
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    config = small_config(num_layers=1)
    chat_config = ChatConfig(
        quantization="q0f32", config=config.model_dump(), vocab_size=config.vocab_size, conv_template=TEMPLATES["LM"]
    )
    write_chat_config(folder, chat_config)
    return folder


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What the compiler, which is none, was asked for."""
    asked: list[Request] = []

    def compile_nothing(request: Request, output: Path, step: Callable[[str], None]) -> None:
        asked.append(request)
        step("linking")
        output.write_text(f"library {len(asked)}")

    monkeypatch.setattr(compile_process, "compile_in_process", compile_nothing)
    return asked


def test_a_state_dtype_is_compiled_unless_a_library_of_it_comes_along(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "read_metadata", lambda library: SimpleNamespace(state_dtype="int8"))
    (folder / "cpu.so").touch()
    trust(folder / "cpu.so")
    assert model_library(folder, "cpu", state_dtype="int8") == folder / "cpu.so"
    assert requests == []
    paths = {dtype: model_library(folder, "cpu", state_dtype=dtype) for dtype in ("float16", "float32")}
    assert [request.state_dtype for request in requests] == list(paths)
    assert len(set(paths.values())) == 2


def test_a_library_is_compiled_once_and_again_when_it_is_damaged(folder: Path, requests: list[Request]) -> None:
    said: list[str] = []
    steps: list[str] = []
    path = model_library(folder, "cpu", said.append, compiling=steps.append)
    assert model_library(folder, "cpu", said.append) == path
    assert (len(requests), steps) == (1, ["linking", ""])
    assert said == [f"compiling for this machine into {path} (once)"]
    for damage in (b"", b"library", b"library 1, or not"):
        path.write_bytes(damage)
        assert model_library(folder, "cpu", said.append) == path
        assert said[-1] == f"{path} is damaged: compiling it again"
        assert path.read_text() == f"library {len(requests)}"
    path.unlink()
    model_library(folder, "cpu", said.append)
    assert len(requests) == 5
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_device_that_is_not_here_is_said_before_anything_is_compiled(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "usable", lambda: None)
    with pytest.raises(GeckoError, match=r"runs nothing for cuda, .*; --device cpu runs the model"):
        model_library(folder, "cuda")
    with pytest.raises(GeckoError, match="device: should be auto, cuda or cpu, got 'vulkan'"):
        load_model(folder, device="vulkan")
    with pytest.raises(GeckoError, match=r"state_dtype: should be .*, got 'float8'"):
        load_model(folder, state_dtype="float8")
    assert requests == []


def test_compiling_tells_its_steps_and_looks_at_nothing_in_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("typer", "numpy", "tvm", "json", "ziglang", "gecko_mlc"):
        Path(f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit({name!r})")
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    steps: list[str] = []
    path = model_library(folder, "cpu", compiling=steps.append)
    assert steps[0] == "loading the compiler"
    assert steps[-2:] == ["linking", ""]
    assert Library(path).metadata.config["num_layers"] == 1
    assert not (tmp_path / "ran").exists()


def test_what_goes_wrong_in_compiling_is_one_message(tmp_path: Path) -> None:
    request = Request(
        config=small_config().model_dump(), quantization="q9", state_dtype=None, slots=1, device="cpu", installed={}
    )
    with pytest.raises(
        GeckoError, match="compiling failed: unknown quantization 'q9'; expected one of q0f32"
    ) as raised:
        compile_in_process(request, tmp_path / "lib.so", lambda step: None)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), 9)", "the compiler was killed, maybe for want of memory"),
        ("os.abort()", "the compiler ended with signal 6"),
        ("sys.exit('LLVM ERROR: IO')", "the compiler ended with code 1: LLVM ERROR: IO"),
    ],
)
def test_a_compiler_that_dies(code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_process, "python", lambda *_: [sys.executable, "-c", f"import os, sys; {code}"])
    request = Request(config={}, quantization="q0f32", state_dtype=None, slots=1, device="cpu", installed={})
    with pytest.raises(GeckoError) as raised:
        compile_in_process(request, tmp_path / "lib.so", lambda step: None)
    assert str(raised.value) == f"compiling failed: {message}"


@pytest.mark.parametrize(
    "code",
    [
        "sys.exit('LLVM ERROR: No space left on device')",
        "print(json.dumps({'error': '[Errno 28] No space left on device'})); sys.exit(1)",
    ],
)
def test_a_full_disk_is_one_line_with_the_way_out(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_process, "python", lambda *_: [sys.executable, "-c", f"import json, sys; {code}"])
    with pytest.raises(GeckoError, match=r"/home/libs: No space left on device; GECKO_MLC_HOME says where [^\n]*$"):
        model_library(folder, "cpu")


def test_ctrl_c_ends_the_compiler_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def press(step: str) -> None:
        if step:
            raise KeyboardInterrupt

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(compile_process, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": started}))
    with pytest.raises(KeyboardInterrupt):
        model_library(folder, "cpu", compiling=press)
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
    assert list((tmp_path / "home" / "libs").iterdir()) == []


def test_the_demo_is_unpacked_again_when_it_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path))
    said: list[str] = []
    folder = demo_folder(said.append)
    assert said == [f"unpacking gecko-demo into {folder}"]
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, content in whole.items():
        for damage in (b"", content[: len(content) // 2], content[:-1] + b"?"):
            (folder / name).write_bytes(damage)
            assert cache._is_whole(folder) == (name.startswith("params_shard") and len(damage) == len(content))
        (folder / name).unlink()
        assert not cache._is_whole(folder)
        (folder / name).write_bytes(content)
    said.clear()
    (folder / "tokenizer.json").write_text("{}")
    demo_folder(said.append)
    assert said == [f"{folder} is damaged or incomplete: unpacking gecko-demo again"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_shard_of_the_demo_is_mended_while_it_is_loaded(home: Path, tmp_path: Path) -> None:
    """Its size is right, so nobody knew; one of the user's own folders is not touched."""
    shutil.copytree(home, tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
        folder, said = demo_folder(), []
        own = tmp_path / "own"
        shutil.copytree(folder, own)
        for model in (folder, own):
            with (model / "params_shard_0.bin").open("r+b") as shard:
                shard.seek(10_000_000)
                shard.write(b"damage")
        model = load_model("gecko-demo", say=said.append, device="cpu")
        assert said == [f"{folder} is damaged or incomplete: unpacking gecko-demo again"]
        assert "".join(model.generate("The king", model.options(max_tokens=3)))
        with pytest.raises(GeckoError, match="the sha256 differs"):
            load_model(own, device="cpu")
