"""A package runs where neither gecko-mlc nor TVM is installed, and nothing could compile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pytest
from support.models import small_config

from gecko_mlc.package.runtime import copy_model, total_bytes, write_runtime
from gecko_mlc.targets import find


class Package(NamedTuple):
    """A package, and a Python that has what its requirements name and nothing else."""

    folder: Path
    python: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), str(self.folder / "gecko-mlc"), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "GECKO_MLC_HOME": str(self.folder.parent / "home")}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gecko_mlc", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that reads and writes the demo's tokens."""
    source = tmp_path_factory.mktemp("checkpoint")
    config = small_config(vocab_size=4096, share_emb=True)
    with resources.as_file(resources.files("gecko_mlc.demo")) as demo:
        shutil.copy(demo / "tokenizer.json", source)
    (source / "config.json").write_text(config.model_dump_json())
    assert command("random_weight", source / "config.json", "-o", source / "weights").returncode == 0
    output = source / "tiny"
    done = command("convert_weight", source / "config.json", "--source", source / "weights", "-o", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def package(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    done = command("package", model, "--device", "cpu", "-o", folder / "tiny-package")
    assert done.returncode == 0, done.stderr
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    refused = re.compile(r"(apache_)?tvm(-|$)|gecko|__editable__|torch|nvidia|ziglang")
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not refused.match(installed.name) and installed.suffix != ".pth":
            (packages / installed.name).symlink_to(installed)
    return Package(folder / "tiny-package", environment / "bin" / "python")


def test_it_generates(package: Package) -> None:
    done = package.run("generate", "tiny", "--prompt", "And the king", "--max-tokens", "20", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "20 out" in done.stderr


def test_it_is_small_and_holds_no_compiler(package: Package) -> None:
    files = {str(file.relative_to(package.folder)) for file in package.folder.rglob("*")}
    assert not [file for file in files if re.search("libtvm_compiler|tvm/relax|gecko_mlc/(compile/|model|tir)", file)]
    assert {"tiny/cpu.so", "tiny/tokenizer.json", "python/tvm/NOTICE", "requirements.txt", "README.md"} <= files
    assert total_bytes(package.folder / "python") < 7e6


def test_it_says_what_it_is_and_is_not(package: Package) -> None:
    assert "none (this is the part of gecko-mlc that runs models)" in package.run("info").stdout
    assert "runs here" in package.run("info", "tiny/cpu.so").stdout
    for arguments in (["compile", "tiny", "-o", "x.so"], ["chat", "gecko-demo"]):
        done = package.run(*arguments)
        assert done.returncode == 1
        assert "this needs all of gecko-mlc, not a package" in done.stderr
    (package.folder / "tiny" / "cpu.so").rename(package.folder / "tiny" / "other.so")
    assert "no library for cpu in it, and nothing here to compile one" in package.run("chat", "tiny").stderr
    (package.folder / "tiny" / "other.so").rename(package.folder / "tiny" / "cpu.so")


def test_without_its_requirements(package: Package) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", package.folder / "gecko-mlc"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(r"there is no typer; install it: .* -m pip install -r .*/requirements.txt", done.stderr)


def test_for_gpus_it_brings_tvms_cuda_side(tmp_path: Path) -> None:
    write_runtime(tmp_path, find("cuda").player, "x86_64", ["tiny"])
    assert (tmp_path / "python/tvm/lib/libtvm_runtime_cuda.so").is_file()
    assert "nvidia-cuda-runtime==13.*" in (tmp_path / "requirements.txt").read_text().splitlines()
    assert total_bytes(tmp_path) < 10e6


def test_weights_can_stay_behind(model: Path, tmp_path: Path) -> None:
    copy_model(model, tmp_path, weights=False, progress=lambda done, total: None)
    assert {file.name for file in tmp_path.iterdir()} == {"mlc-chat-config.json", "tokenizer.json"}


def test_what_cannot_be_packaged_leaves_nothing(model: Path, package: Package, tmp_path: Path) -> None:
    before = total_bytes(package.folder)
    done = command("package", model, "--device", "cpu", "-o", package.folder)
    assert "there already; packages go into a new folder" in done.stderr
    assert total_bytes(package.folder) == before
    done = command("package", model, "--device", "cuda", "--arch", "sm_1", "-o", tmp_path / "new")
    assert "unknown architecture 'sm_1'" in done.stderr
    assert "called tiny" in command("package", model, model, "--device", "cpu", "-o", tmp_path / "new").stderr
    assert list(tmp_path.iterdir()) == []
