"""A target is one entry: a made-up one is compiled for and run, and no file of the product knows of it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from support.models import in_memory, random_parameters, small_config, with_derived
from support.narrow import TARGET, NarrowBackend, NarrowPlayer, NarrowTarget

from gecko_mlc import targets
from gecko_mlc.cache import library_name, model_library
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.target import compile_target
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import read_metadata
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from gecko_mlc.targets import ENTRY_POINTS, Target, find, register
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.trust import trust

ROOT = Path(__file__).parents[1]
# The entries: what may know which machine it is for.
ENTRIES = (
    "compile/backends/",
    "gecko_mlc/model/cpu.py",
    "gecko_mlc/model/cuda.py",
    "gecko_mlc/targets.py",
    "runtime/players/",
    "tir_kernels/cpu/",
    "tir_kernels/cuda/",
    "tir_kernels/hardware.py",
)
# They speak of the devices of other programs.
FOREIGN = ("gecko_mlc/integrations/", "gecko_mlc/reference/")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Target:
    """The made-up target, registered for a test."""
    monkeypatch.setattr(targets, "_targets", list(targets._targets))
    register(TARGET)
    return TARGET


def run(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits [n, O] of a library of the small config with random parameters."""
    library, config = Library(path), small_config()
    values = with_derived(config, random_parameters(config))
    tensors = library.player.allocate(library.metadata.parameters)
    for spec, tensor in zip(library.metadata.parameters, tensors, strict=True):
        library.player.upload(tensor, in_memory(spec, values[spec.name]))
    engine = Engine(library, tensors)
    return np.concatenate([engine.extend_logits(0, tokens[:-1]), engine.extend_logits(0, tokens[-1:])])


def test_a_made_up_target_is_compiled_for_and_run(narrow: Target, tmp_path: Path) -> None:
    path, tokens = tmp_path / "narrow.so", list(range(20))
    target = compile_target("narrow")
    assert isinstance(target, NarrowBackend)
    assert target.hardware == CPU(2, 16)
    compiled = compile_library(small_config(), quantization("q0f32"), target, path)
    metadata = read_metadata(path)
    assert metadata == compiled.metadata
    assert isinstance(metadata.target, NarrowTarget)
    assert (metadata.target.kind, metadata.target.lanes) == ("narrow", 2)
    assert isinstance(Library(path).player, NarrowPlayer)
    compile_library(small_config(), quantization("q0f32"), compile_target("cpu"), tmp_path / "cpu.so")
    np.testing.assert_allclose(run(path, tokens), run(tmp_path / "cpu.so", tokens), atol=2e-5)


def test_a_made_up_target_is_a_choice_wherever_targets_are(
    narrow: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
    assert targets.names() == ["cuda", "narrow", "cpu"]
    with pytest.raises(GeckoError, match="unknown target 'abacus'; expected one of cuda, narrow, cpu"):
        compile_target("abacus")
    (tmp_path / library_name("narrow")).touch()
    trust(tmp_path / library_name("narrow"))
    assert model_library(tmp_path, "narrow") == tmp_path / "narrow.so"
    # `auto` takes the CPU last, of those that run here.
    (tmp_path / library_name("cpu")).touch()
    monkeypatch.setattr("gecko_mlc.cache.check_library", lambda library: None)
    assert model_library(tmp_path, "auto") == tmp_path / "narrow.so"


def test_a_name_is_given_once(narrow: Target) -> None:
    with pytest.raises(GeckoError, match="two targets 'narrow'"):
        register(Target("narrow", None, None, None))


def test_a_library_of_an_unknown_target(narrow: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "narrow.so"
    compile_library(small_config(num_layers=1), quantization("q0f32"), compile_target("narrow"), path)
    monkeypatch.setattr(targets, "_targets", [t for t in targets._targets if t is not narrow])
    with pytest.raises(GeckoError, match=r"narrow\.so: unknown target 'narrow'; expected one of cuda, cpu"):
        read_metadata(path)


def test_an_installed_package_brings_one(tmp_path: Path) -> None:
    """Through an entry point of its own, in processes that nobody told of it."""
    folder, config = tmp_path / "narrow-1.0.dist-info", tmp_path / "config.json"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: narrow\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nnarrow = support.narrow:TARGET\n")
    config.write_text(small_config(num_layers=1).model_dump_json())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(tmp_path)])}

    def command(*arguments: object) -> str:
        line = [sys.executable, "-m", "gecko_mlc", *map(str, arguments)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("compile", config, "--device", "narrow", "-o", tmp_path / "narrow.so")
    said = dict(line.split(maxsplit=1) for line in command("info", tmp_path / "narrow.so").splitlines())
    assert said["lanes"] == "2"
    assert "auto|cuda|cpu|narrow" in command("compile", "--help")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("support.nothing:TARGET", r"the target 'broken' \(support.nothing:TARGET\) cannot be loaded: No module named"),
        ("support.narrow:Narrow", "is no gecko_mlc.targets.Target of this name"),
        ("support.narrow:TARGET", "is no gecko_mlc.targets.Target of this name"),
    ],
)
def test_a_broken_entry_point_says_so(place: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the others alone."""
    monkeypatch.setattr(targets, "entry_points", lambda group: [EntryPoint("broken", place, group)])
    targets._register_installed.cache_clear()
    with pytest.raises(GeckoError, match=message):
        targets.targets()
    assert find("cpu").name == "cpu"


def test_what_runs_loads_no_compiler() -> None:
    code = """
import sys
from gecko_mlc.targets import targets
assert not {"numpy", "pydantic"} & set(sys.modules)
players = [target.player for target in targets()]
assert all(player.machine() for player in players)
assert not {"tvm", "torch", "gecko_mlc.compile", "gecko_mlc.tir_kernels"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def product() -> Iterator[str]:
    for folder in ("gecko_mlc", "tir_kernels", "compile", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith((*ENTRIES, *FOREIGN)):
                yield name


@pytest.mark.parametrize("name", list(product()))
def test_nothing_else_asks_which_machine_it_is(name: str) -> None:
    """No `isinstance` of a target's hardware, backend, player or spec; no comparison with its name."""
    kinds = {target.name for target in targets._targets}
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            assert not any(mark in ast.unparse(node.args[1]) for mark in ("CPU", "CUDA")), ast.unparse(node)
        if isinstance(node, ast.Compare):
            compared = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            assert not kinds & compared, ast.unparse(node)
