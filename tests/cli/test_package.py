"""A package runs where neither gecko-mlc nor TVM is installed, and nothing could compile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import resources
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.models import small_config

from gecko_mlc.cli import package as cli_package
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.package.requirements import fetch_wheels, oldest_python, requirements
from gecko_mlc.package.runtime import copy_model, total_bytes, write_readme, write_runtime
from gecko_mlc.targets import find


class Package(NamedTuple):
    """A package, and a Python that has what its requirements name and nothing else."""

    folder: Path
    python: Path

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.start(self.python, self.folder / "gecko-mlc", *arguments, cwd=cwd)

    def start(self, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "GECKO_MLC_HOME": str(self.folder.parent / "home")}
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
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
    # What somebody left there, and another machine's library.
    for other in ("notes.txt", "other.so"):
        (output / other).write_text("of mine")
    return output


@pytest.fixture(scope="module")
def package(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    done = command("package", model, "--device", "cpu", "-o", folder / "tiny-package")
    assert done.returncode == 0, done.stderr
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for line in (folder / "tiny-package" / "requirements.txt").read_text().split():
        files = distribution(line.partition("==")[0])
        for top in {file.parts[0] for file in files.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(files.locate_file(top))
    return Package(folder / "tiny-package", environment / "bin" / "python")


def test_it_generates(package: Package) -> None:
    done = package.run("generate", "tiny", "--prompt", "And the king", "--max-tokens", "20", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "20 out" in done.stderr


GREEDY = ("generate", "tiny", "--prompt", "And the king", "--max-tokens", "5", "--temperature", "0")


def test_it_runs_from_any_folder_and_through_a_link(package: Package, tmp_path: Path) -> None:
    """By its own Python, if it has one; nothing is imported from where it is started, or beside it, and nothing is
    written."""
    expected = package.run(*GREEDY).stdout
    for folder in (tmp_path, package.folder):
        (folder / "typer.py").write_text("raise SystemExit('imported')")
    (tmp_path / "link").symlink_to(package.folder / "gecko-mlc")
    (package.folder / "venv").symlink_to(package.python.parents[1])
    try:
        for python in (str(package.python), sys._base_executable):  # type: ignore[attr-defined]
            done = package.start(python, tmp_path / "link", *GREEDY, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (0, expected), done.stderr
    finally:
        (package.folder / "venv").unlink()
        (package.folder / "typer.py").unlink()
    assert {file.name for file in tmp_path.iterdir()} == {"typer.py", "link"}
    assert not (package.folder.parent / "home").exists()


def test_what_mends_it_is_done_elsewhere(package: Package, tmp_path: Path) -> None:
    """It names its models and devices; what needs all of gecko-mlc is for where it was made."""
    done = package.run("chat", "gecko-demo")
    assert done.returncode == 1
    assert done.stderr.endswith("error: gecko-demo: no such model folder; in this package: tiny\n")
    done = package.run("info", "nothing.so")
    assert (
        done.stderr
        == "error: nothing.so: no such library; where this package was made, `gecko-mlc compile` makes one\n"
    )
    done = package.run("generate", "tiny", "-p", "x", "--state-dtype", "int8")
    assert "tiny: no library for cpu with a int8 state in it but cpu.so, and nothing here to compile" in done.stderr
    library = package.folder / "tiny" / "cpu.so"
    content = library.read_bytes()
    try:
        library.write_bytes(content[:-9] + b"x" + content[-8:])
        done = package.run("generate", "tiny", "-p", "x")
        assert done.returncode == 1
        assert "cpu.so: damaged" in done.stderr
    finally:
        library.write_bytes(content)


def test_it_is_small_and_holds_what_runs_alone(package: Package) -> None:
    files = {str(file.relative_to(package.folder)) for file in package.folder.rglob("*")}
    making = (
        "libtvm_compiler|tvm/relax|gecko_mlc/(config|state|compile|model/|tir|convert|package|demo|reference|integ)"
    )
    assert not [file for file in files if re.search(rf"{making}|cli/(compil|convert|package)", file)]
    assert {"tiny/cpu.so", "tiny/tokenizer.json", "python/tvm/NOTICE", "requirements.txt", "README.md"} <= files
    assert not {"tiny/notes.txt", "tiny/other.so"} & files
    assert total_bytes(package.folder / "python") < 7e6


@pytest.mark.parametrize(
    "arguments", [["compile", "tiny", "-o", "x.so"], ["package", "tiny"], ["gen_config", "--help"]]
)
def test_what_makes_models_is_elsewhere(arguments: list[str], package: Package) -> None:
    done = package.run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {arguments[0]}: this package only runs models; all of gecko-mlc makes them\n"


def test_it_says_what_it_is_and_is_not(package: Package) -> None:
    assert "none (this is the part of gecko-mlc that runs models)" in package.run("info").stdout
    assert "runs here" in package.run("info", "tiny/cpu.so").stdout
    (package.folder / "tiny" / "cpu.so").rename(package.folder / "tiny" / "other.so")
    assert (
        "no library for cpu in it but other.so, and nothing here to compile one" in package.run("chat", "tiny").stderr
    )
    (package.folder / "tiny" / "other.so").rename(package.folder / "tiny" / "cpu.so")


def test_without_its_requirements(package: Package) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", package.folder / "gecko-mlc"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    venv = re.escape(str(package.folder / "venv"))
    install = rf"\S+ -m venv {venv} && {venv}/bin/python -m pip install -r \S+/requirements.txt"
    assert re.fullmatch(rf"error: there is no \w+; install it: {install}\n", done.stderr)


OLDER = """
import sys
sys.version_info = (3, 8, 0, "final", 0)
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), {"__file__": sys.argv[1]})
"""


def test_with_an_older_python(package: Package) -> None:
    launcher = str(package.folder / "gecko-mlc")
    done = subprocess.run([sys.executable, "-c", OLDER, launcher], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: this needs Python 3\.\d+ or later; \S+ is 3\.8\n", done.stderr)


def test_for_gpus_it_brings_tvms_cuda_side(tmp_path: Path) -> None:
    write_runtime(tmp_path, [find("cuda").player, find("cpu").player])
    assert (tmp_path / "python/tvm/lib/libtvm_runtime_cuda.so").is_file()
    assert [line for line in (tmp_path / "requirements.txt").read_text().split() if "cuda-runtime==13." in line]
    assert total_bytes(tmp_path) < 10e6


def test_requirements_are_pinned_to_what_runs_here() -> None:
    lines = requirements([find("cpu").player])
    assert f"numpy=={version('numpy')}" in lines
    # What is needed by what is needed.
    assert f"pydantic-core=={version('pydantic_core')}" in lines
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+", line) for line in lines)
    assert not [line for line in lines if re.match("apache-tvm=|torch|pytest|gecko", line)]
    assert (3, 10) <= oldest_python(lines) <= sys.version_info[:2]


def wheel(folder: Path, requirement: str) -> None:
    """An empty package that a requirement names."""
    name, _, number = requirement.partition("==")
    name = name.replace("-", "_")
    info = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_it_installs_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With wheels as pip finds them where the package is made; the command is its README's."""
    package, index = tmp_path / "package", tmp_path / "index"
    index.mkdir()
    cpu = find("cpu").player
    write_runtime(package, [cpu])
    lines = (package / "requirements.txt").read_text().splitlines()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(GeckoError, match=rf"--wheels: pip could not fetch .*: .*{lines[0]}"):
        fetch_wheels(package)
    for line in lines:
        wheel(index, line)
    fetch_wheels(package)
    assert len(list((package / "wheels").iterdir())) == len(lines)
    write_readme(package, {"cpu": cpu}, "x86_64", ["tiny"])
    (install,) = re.findall(r"pip (install .*)", (package / "README.md").read_text())
    monkeypatch.delenv("PIP_FIND_LINKS")
    command = [sys.executable, "-m", "pip", *install.split(), "--target", str(tmp_path / "installed"), "--no-compile"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "installed").glob("*.dist-info"))) == len(lines)


def test_weights_can_stay_behind(model: Path, tmp_path: Path) -> None:
    copy_model(model, tmp_path, weights=False, progress=lambda done, total: None)
    assert {file.name for file in tmp_path.iterdir()} == {"mlc-chat-config.json", "tokenizer.json"}


def test_libraries_for_several_devices(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures are the GPU's; what a GPU needs is brought."""
    compiled = []

    def compile_model(*arguments: Any, **options: Any) -> None:
        compiled.append((arguments[1].name, arguments[4], arguments[5]))
        arguments[1].touch()

    monkeypatch.setattr(cli_package, "compile_model", compile_model)
    for name, devices in {"list": ["cpu,cuda"], "repeated": ["cpu", "cuda", "cpu"]}.items():
        compiled.clear()
        cli_package.package([str(model)], tmp_path / name, devices, arch="sm_80")
        assert compiled == [("cuda.so", "cuda", "sm_80"), ("cpu.so", "cpu", None)]
        assert (tmp_path / name / "tiny" / "cuda.so").is_file()
        assert "nvidia-cuda-runtime" in (tmp_path / name / "requirements.txt").read_text()
        assert "for cuda or cpu on Linux" in (tmp_path / name / "README.md").read_text()


def test_what_cannot_be_packaged_leaves_nothing(model: Path, package: Package, tmp_path: Path) -> None:
    before = total_bytes(package.folder)
    done = command("package", model, "--device", "cpu", "-o", package.folder)
    assert (done.returncode, "there already; packages go into a new folder" in done.stderr) == (1, True)
    assert total_bytes(package.folder) == before
    tiny = str(model)
    wrong: list[tuple[list[str], list[str], str | None, str]] = [
        ([tiny], ["cuda"], "sm_1", "unknown architecture 'sm_1'"),
        ([tiny], ["cpu,gpu"], None, "unknown target 'gpu'"),
        ([tiny, tiny], ["cpu"], None, "called tiny"),
        ([tiny, "nothing"], ["cpu"], None, "nothing: no such"),
    ]
    for models, devices, arch, message in wrong:
        with pytest.raises(GeckoError, match=message):
            cli_package.package(models, tmp_path / "new", devices, arch=arch)
    assert list(tmp_path.iterdir()) == []
