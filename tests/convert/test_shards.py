"""Conversions that are interrupted: at any step, by kill -9, or by each other."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.models import small_config

from gecko_mlc.cli import main
from gecko_mlc.convert import shards
from gecko_mlc.convert.chat_config import find_config
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.random import write_random_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.formats.chat_config import read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.formats.weights import check_folder, read_tensor_cache
from gecko_mlc.models import model_folder

CONFIG = small_config()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in (0, 1):
        write_random_checkpoint(CONFIG, folder / str(seed), "bfloat16", seed)
    return [folder / "0", folder / "1"]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)


def convert(
    source: Path, output: Path, scheme: str = "q4f16_1", say: Callable[[str], None] = lambda text: None
) -> None:
    convert_weights(CONFIG, open_checkpoint(source), quantization(scheme), output, say=say, command="go on")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class PowerFailure(BaseException):
    pass


class Failing:
    """A function that fails from a certain call on."""

    def __init__(self, function: Callable[..., None], calls: int, failure: type[BaseException] = PowerFailure) -> None:
        self.function, self.calls, self.failure = function, calls, failure

    def __call__(self, *arguments: object) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise self.failure
        self.function(*arguments)


@pytest.mark.usefixtures("small_shards")
def test_interrupted_at_any_step(checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step ends in a renaming. Until the last one of all the folder has its old weights, or says what it is."""
    old, new = checkpoints
    convert(old, tmp_path / "old")
    convert(new, tmp_path / "new", "q8f16_1")
    for steps in range(100):
        output = shutil.copytree(tmp_path / "old", tmp_path / str(steps))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Failing(os.replace, steps))
            try:
                convert(new, output, "q8f16_1")
                break
            except PowerFailure:
                pass
        if (output / "tensor-cache.json").exists():
            before = {name: data for name, data in files(output).items() if not name.startswith(".conversion")}
            assert before == files(tmp_path / "old")
        else:
            with pytest.raises(GeckoError, match="not whole, its conversion was interrupted; continue it with: go on"):
                read_tensor_cache(output)
        convert(new, output, "q8f16_1")
        assert files(output) == files(tmp_path / "new")
    # The command's file, each shard twice, the index twice.
    assert steps == 1 + 2 * len(list((tmp_path / "new").glob("*.bin"))) + 2


CONVERSION = """
import sys
from pathlib import Path
from gecko_mlc.convert import shards
from gecko_mlc.convert.checkpoint import open_checkpoint
from gecko_mlc.convert.weights import convert_weights
from gecko_mlc.convert.chat_config import read_model_config
from gecko_mlc.formats.quantization import quantization

shards.SHARD_BYTES = 500
source, output = map(Path, sys.argv[1:])
config, checkpoint = read_model_config(source), open_checkpoint(source)
print("begins", flush=True)
convert_weights(config, checkpoint, quantization("q4f16_1"), output)
"""


def test_killed_ten_times(tmp_path: Path) -> None:
    source, whole, killed = (tmp_path / name for name in ("source", "whole", "killed"))
    write_random_checkpoint(small_config(num_layers=20), source, "bfloat16")

    def start(output: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CONVERSION, str(source), str(output)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        return process

    with start(whole) as process:
        begun = time.perf_counter()
        assert process.wait() == 0
        seconds = time.perf_counter() - begun
    rng, kills = random.Random(0), 0
    while kills < 10:
        with start(killed) as process:
            time.sleep(rng.uniform(0, seconds / 4))
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:  # It was faster.
            assert files(killed) == files(whole)
            shutil.rmtree(killed)
        else:
            kills += 1
    with start(killed) as process:
        assert process.wait() == 0
    assert files(killed) == files(whole)


@pytest.fixture
def interrupted(checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None) -> Path:
    """A folder in which three shards are whole."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Failing(os.replace, 4))
        with pytest.raises(PowerFailure):
            convert(checkpoints[0], tmp_path / "model")
    return tmp_path / "model"


def test_what_is_there_is_not_made_again(checkpoints: list[Path], interrupted: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in (interrupted / ".conversion").glob("*.bin.json")}
    assert len(before) == 3
    said: list[str] = []
    convert(checkpoints[0], interrupted, say=said.append)
    count = len(read_tensor_cache(interrupted).records)
    assert said == [f"continuing an interrupted conversion: 3 of {count} shards are there"]
    for name, time_of_change in before.items():
        assert (interrupted / name.removesuffix(".json")).stat().st_mtime_ns <= time_of_change


@pytest.mark.parametrize(("seed", "scheme"), [(1, "q4f16_1"), (0, "q3f16_1")])
def test_another_conversion_begins_again(
    seed: int, scheme: str, checkpoints: list[Path], interrupted: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    convert(checkpoints[seed], interrupted, scheme, said.append)
    assert said == ["an interrupted conversion was of another checkpoint, or with other options: beginning again"]
    convert(checkpoints[seed], tmp_path / "whole", scheme)
    assert files(interrupted) == files(tmp_path / "whole")


@pytest.mark.parametrize("use", [read_chat_config, read_tensor_cache, lambda f: find_config(str(f)), model_folder])
def test_a_folder_that_is_not_whole_is_named_as_such(use: Callable[[Path], object], interrupted: Path) -> None:
    with pytest.raises(GeckoError, match="model: not whole, its conversion was interrupted; continue it with: go on"):
        use(interrupted)


@pytest.mark.usefixtures("small_shards")
def test_ctrl_c_tells_how_to_go_on(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["gecko-mlc", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().err

    output = str(tmp_path / "model")
    command = ("convert_weight", str(checkpoints[0]), "--quantization", "q4f16_1", "-o", output)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Failing(os.replace, 5, KeyboardInterrupt))
        code, said = run(*command)
    assert code == 130
    assert "interrupted; the same command goes on from here" in said
    code, said = run("info", output)
    assert code == 1
    assert f"continue it with: gecko-mlc {' '.join(command)}" in said
    code, said = run(*command)
    assert code == 0
    assert "continuing an interrupted conversion" in said
    assert run("info", output, "--check")[0] == 0


@pytest.mark.usefixtures("small_shards")
def test_two_conversions_into_one_folder(checkpoints: list[Path], tmp_path: Path) -> None:
    with shards._locked(tmp_path / ".conversion"), pytest.raises(GeckoError, match="another conversion is writing"):
        convert(checkpoints[0], tmp_path)
    convert(checkpoints[0], tmp_path)
    assert check_folder(tmp_path) == []


@pytest.mark.usefixtures("small_shards")
def test_the_bytes_do_not_depend_on_the_threads(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writers in (1, 8):
        monkeypatch.setattr(shards, "MOST_WRITERS", writers)
        monkeypatch.setattr(shards, "usable_cores", lambda: 16)
        convert(checkpoints[0], tmp_path / str(writers))
    assert files(tmp_path / "1") == files(tmp_path / "8")


def test_a_disk_that_is_too_small_is_told_before(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the quantized size, half a byte a weight and the scales."""
    convert(checkpoints[0], tmp_path / "model")
    needed = sum(shard.nbytes for shard in read_tensor_cache(tmp_path / "model").records)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
    with pytest.raises(GeckoError, match=f"other: needs about {needed:,} bytes, the disk has {needed - 1:,} left"):
        convert(checkpoints[0], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    convert(checkpoints[0], tmp_path / "other")


def test_weights_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    def make() -> tuple[np.ndarray]:
        raise GeckoError("x: not all values are finite")

    spec = shards.TensorSpec(name="x", shape=(4,), dtype="float32")
    parts = [shards.Part((spec,), lambda: (np.zeros(4, np.float32),)), shards.Part((spec,), make)]
    with pytest.raises(GeckoError, match="not all values are finite"):
        shards.write_weights(tmp_path, parts, 8, "identity", "go on", lambda *_: None, lambda _: None)
    assert files(tmp_path) == {}
