"""The house (ARCHITECTURE.md): what each folder may import. Arrows go down only, and every file stands in a room."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("gecko_mlc", "tir_kernels", "compile", "runtime")

# Rooms from the ground up: a folder, or a file of a folder whose files differ; and whose imports it may have besides
# its own and the ground's. All of those stand above it here. "/*" is a room and those inside it.
GROUND = "gecko_mlc/__init__.py gecko_mlc/formats gecko_mlc/targets.py"
HOUSE = {
    # The ground is one room: metadata name targets, and their registry has its errors from there.
    "gecko_mlc/__init__.py": "",
    "gecko_mlc/formats": "",
    "gecko_mlc/targets.py": "",
    "gecko_mlc/demo": "",
    # Where things are looked for, and kept; and which libraries may be loaded.
    "gecko_mlc/search_path.py": "",
    "gecko_mlc/home.py": "",
    "gecko_mlc/trust.py": "gecko_mlc/home.py",
    "gecko_mlc/cuda_toolkit.py": "gecko_mlc/search_path.py",
    # Kernels know hardware, but neither models nor targets; CUDA's go from instructions to fused steps.
    "tir_kernels/oracles": "",
    "tir_kernels": "tir_kernels/oracles",
    "tir_kernels/cpu": "tir_kernels tir_kernels/oracles",
    "tir_kernels/cuda/ptx": "tir_kernels",
    "tir_kernels/cuda/quantized": "tir_kernels tir_kernels/cuda/ptx",
    "tir_kernels/cuda": "tir_kernels tir_kernels/cuda/ptx",
    "tir_kernels/cuda/gemv": "tir_kernels tir_kernels/cuda/ptx tir_kernels/cuda/quantized",
    "tir_kernels/cuda/gemm": "tir_kernels tir_kernels/cuda/ptx tir_kernels/cuda/quantized",
    "tir_kernels/cuda/state": "tir_kernels tir_kernels/cuda/ptx",
    "tir_kernels/cuda/memory": "tir_kernels tir_kernels/cuda/ptx tir_kernels/cuda/gemm tir_kernels/cuda/state",
    "tir_kernels/cuda/decode": """tir_kernels tir_kernels/cuda tir_kernels/cuda/ptx tir_kernels/cuda/quantized
        tir_kernels/cuda/gemv tir_kernels/cuda/state""",
    "tir_kernels/cuda/prefill": """tir_kernels tir_kernels/cuda tir_kernels/cuda/ptx tir_kernels/cuda/quantized
        tir_kernels/cuda/gemm tir_kernels/cuda/state""",
    # The model knows kernels, and of a target the hardware.
    "gecko_mlc/config.py": "",
    "gecko_mlc/state.py": "gecko_mlc/config.py tir_kernels",
    "gecko_mlc/model": "gecko_mlc/config.py gecko_mlc/state.py tir_kernels/*",
    # Compiling knows models and targets, but nothing of running. A backend is found through its target's entry.
    "compile/__init__.py": "",
    "compile/hosts.py": "",
    "compile/link.py": "gecko_mlc/search_path.py compile/hosts.py",
    "compile/kernels.py": "",
    "compile/pipeline.py": "gecko_mlc/model",
    "compile/plan.py": "compile/kernels.py",
    "compile/lint.py": "tir_kernels",
    "compile/backends": "gecko_mlc/model tir_kernels compile/hosts.py compile/kernels.py compile/pipeline.py",
    "compile/backends/cuda": """gecko_mlc/search_path.py gecko_mlc/cuda_toolkit.py gecko_mlc/model tir_kernels
        compile/backends compile/link.py compile/kernels.py compile/pipeline.py compile/plan.py""",
    "compile/target.py": "compile/backends",
    "compile/library.py": """gecko_mlc/config.py gecko_mlc/state.py gecko_mlc/model compile/backends compile/link.py
        compile/kernels.py compile/pipeline.py compile/plan.py compile/lint.py""",
    # Running knows a library by its metadata.
    "runtime/__init__.py": "",
    "runtime/interrupts.py": "",
    "runtime/forks.py": "",
    "runtime/devices": "gecko_mlc/search_path.py gecko_mlc/cuda_toolkit.py",
    "runtime/state": "",
    "runtime/players": """gecko_mlc/search_path.py gecko_mlc/cuda_toolkit.py runtime/interrupts.py runtime/devices
        runtime/state""",
    "runtime/library.py": "runtime/players",
    "runtime/parameters.py": "runtime/players",
    "runtime/memory.py": "",
    "runtime/engine.py": """runtime/interrupts.py runtime/forks.py runtime/devices runtime/players runtime/state
        runtime/library.py runtime/memory.py""",
    "runtime/text": "",
    "runtime/generate": "runtime/state runtime/text",
    "runtime/model.py": """runtime/devices runtime/memory.py runtime/state runtime/library.py runtime/parameters.py
        runtime/engine.py runtime/text runtime/generate""",
    "runtime/conversation.py": "runtime/state runtime/text runtime/generate",
    "runtime/measure": """runtime/devices runtime/players runtime/state runtime/engine.py runtime/text
        runtime/model.py""",
    # On top: what makes model folders, and what a user meets.
    "gecko_mlc/reference": "gecko_mlc/config.py",
    "gecko_mlc/convert": "gecko_mlc/config.py gecko_mlc/reference runtime/devices runtime/text",
    "gecko_mlc/compile_process.py": "gecko_mlc/search_path.py gecko_mlc/config.py compile/target.py compile/library.py",
    "gecko_mlc/cache.py": """gecko_mlc/home.py gecko_mlc/trust.py gecko_mlc/convert gecko_mlc/compile_process.py
        runtime/devices runtime/library.py""",
    "gecko_mlc/models.py": "gecko_mlc/home.py gecko_mlc/config.py gecko_mlc/cache.py",
    "gecko_mlc/package": "gecko_mlc/search_path.py gecko_mlc/trust.py gecko_mlc/models.py runtime/players",
    "gecko_mlc/api.py": "gecko_mlc/trust.py gecko_mlc/cache.py gecko_mlc/models.py runtime/*",
    "gecko_mlc/cli": """gecko_mlc/search_path.py gecko_mlc/home.py gecko_mlc/trust.py gecko_mlc/config.py
        gecko_mlc/convert gecko_mlc/cache.py gecko_mlc/models.py gecko_mlc/package gecko_mlc/api.py compile/*
        runtime/*""",
    "gecko_mlc/integrations": "gecko_mlc/config.py gecko_mlc/convert gecko_mlc/api.py gecko_mlc/cli runtime/*",
    "gecko_mlc/__main__.py": "gecko_mlc/cli",
}

# Of others' packages, who may import them. The rooms of `ALONE` import no others than theirs.
OTHERS = {
    "torch": "gecko_mlc/reference gecko_mlc/convert",
    "tvm": "tir_kernels/* gecko_mlc/model compile/* runtime/players runtime/library.py",
    "tvm_ffi": "compile/* runtime/players",
    "tokenizers": "gecko_mlc/reference runtime/text",
    "typer": "gecko_mlc/cli",
    "lm_eval": "gecko_mlc/integrations",
    "mlc_llm": "gecko_mlc/integrations",
}
ALONE = {"gecko_mlc/formats": {"numpy", "ml_dtypes", "pydantic"}, "tir_kernels/oracles": {"numpy", "ml_dtypes"}}
# These import neither TVM nor PyTorch, nor does what they import: a player loads TVM's runtime when it is needed.
LIGHT = (
    *("gecko_mlc/formats", "gecko_mlc/targets.py", "tir_kernels/oracles", "runtime"),
    "tir_kernels/cuda/quantized/activations.py",
)
# A kind of machine is told from another where it is at home.
AT_HOME = "gecko_mlc/targets.py compile/target.py compile/backends/* runtime/players runtime/devices"
HARDWARE = {"CPU", "CUDA", "GPU"}

FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for top in TOPS
    for path in sorted((ROOT / top).rglob("*.py"))
}


class Import(NamedTuple):
    """A line that imports a module of this project, or another package."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports(file: str, tree: ast.AST) -> Iterator[Import]:
    """All of a file's, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (Import(file, node.lineno, f"{origin}.{alias.name}") for alias in node.names)


IMPORTS = [found for file, tree in FILES.items() for found in imports(file, tree)]


def room(file: str) -> str:
    """The file itself or its folder, whichever has a rule: a folder's rule is not for those inside it."""
    return file if file in HOUSE else file.rpartition("/")[0]


def file_of(module: str) -> str | None:
    """The file that a module of this project, or something in one, comes from."""
    parts = module.split(".")
    if parts[0] != "gecko_mlc":
        return None
    parts = parts[1:] if parts[1:2] and parts[1] in TOPS else parts
    while parts:
        path = "/".join(parts)
        if (file := f"{path}.py") in FILES or (file := f"{path}/__init__.py") in FILES:
            return file
        parts.pop()
    raise ValueError(f"no module {module}")


def module_of(path: str) -> str:
    """The name that a file without its suffix, or a folder, is imported by."""
    return path.replace("/", ".") if path.split("/")[0] == "gecko_mlc" else f"gecko_mlc.{path.replace('/', '.')}"


def among(name: str, rooms: str) -> bool:
    """Whether a room is one of these."""
    return any(name == r or (r.endswith("/*") and f"{name}/".startswith(r[:-1])) for r in rooms.split())


def nothing(strays: list[str]) -> None:
    """Fails with all of them, a line each."""
    assert not strays, "\n".join(["", *strays])


def test_every_file_stands_in_a_room() -> None:
    nothing([file for file in FILES if room(file) not in HOUSE])


def test_arrows_go_down() -> None:
    """So there are no cycles between rooms."""
    rooms = list(HOUSE)
    nothing(
        [f"{name} -> {r}" for place, name in enumerate(rooms) for r in rooms[place:] if among(r, HOUSE[name])],
    )


@pytest.mark.parametrize("name", HOUSE)
def test_a_room_imports_only_what_is_below_it(name: str) -> None:
    allowed = f"{name} {HOUSE[name]} {GROUND}"
    own = [(found, file_of(found.module)) for found in IMPORTS if room(found.file) == name]
    nothing([str(found) for found, file in own if file is not None and not among(room(file), allowed)])


@pytest.mark.parametrize("package", OTHERS)
def test_others_packages_stay_where_they_are_needed(package: str) -> None:
    found = [f for f in IMPORTS if f.module.split(".")[0] == package]
    nothing([str(f) for f in found if not among(room(f.file), OTHERS[package])])


@pytest.mark.parametrize("name", ALONE)
def test_the_ground_needs_little(name: str) -> None:
    known = sys.stdlib_module_names | {"gecko_mlc"} | ALONE[name]
    nothing([str(f) for f in IMPORTS if room(f.file) == name and f.module.split(".")[0] not in known])


@pytest.mark.parametrize("folder", [*TOPS, "tests", "benchmarks"])
def test_bare_and_relative_names_are_nobodys(folder: str) -> None:
    """The four folders install under `gecko_mlc`."""
    paths = (ROOT / folder).rglob("*.py")
    found = [f for p in paths for f in imports(p.relative_to(ROOT).as_posix(), ast.parse(p.read_text()))]
    nothing([str(f) for f in found if f.module.split(".")[0] in ("", "runtime", "compile", "tir_kernels")])


def test_machines_are_told_apart_where_they_are_at_home() -> None:
    """Elsewhere their properties decide: no `isinstance` of hardware, no comparison with the name of a kind."""
    strays = []
    for file, tree in FILES.items():
        if among(room(file), AT_HOME):
            continue
        for node in ast.walk(tree):
            told = False
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                told = any(isinstance(side, ast.Constant) and side.value in ("cpu", "cuda") for side in sides)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                told = bool({ast.unparse(part) for part in ast.walk(node.args[1])} & HARDWARE)
            if told:
                strays.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    nothing(strays)


def test_every_folder_is_in_the_wheel() -> None:
    listed = set(re.findall(r'^  "(gecko_mlc[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    folders = [file.removesuffix("/__init__.py") for file in FILES if file.endswith("/__init__.py")]
    assert listed == {module_of(folder) for folder in folders}


def run(script: str, home: Path) -> None:
    environment = {**os.environ, "GECKO_MLC_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_light_rooms_load_neither_tvm_nor_pytorch(home: Path) -> None:
    files = [f for f in FILES if any(f == light or f.startswith(f"{light}/") for light in LIGHT)]
    modules = [module_of(f.removesuffix(".py").removesuffix("/__init__")) for f in files]
    run(
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        "    assert not {'tvm', 'tvm_ffi', 'torch'} & set(sys.modules), name",
        home,
    )


def test_running_loads_neither_compiler_nor_pytorch(home: Path) -> None:
    """And importing the package loads next to nothing."""
    run(
        """
import sys
import gecko_mlc
assert not {"tvm", "torch", "numpy"} & set(sys.modules)
from gecko_mlc.api import load_model
model = load_model("gecko-demo")
list(model.generate("Once", model.options(max_tokens=2)))
maps = open("/proc/self/maps").read()
assert "libtvm_runtime.so" in maps
assert "libtvm_compiler.so" not in maps
assert "torch" not in sys.modules
""",
        home,
    )
