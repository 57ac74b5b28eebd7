"""The layers of ARCHITECTURE.md: data flows one way, and running needs neither compiler nor PyTorch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from gecko_mlc.cli import app

ROOT = Path(__file__).parents[1]
# What the files of a folder may import of this project; of PyTorch, only these files may.
ALLOWED = {
    "tir_kernels": ("gecko_mlc.tir_kernels", "gecko_mlc.formats"),
    "runtime": ("gecko_mlc.runtime", "gecko_mlc.cuda_toolkit", "gecko_mlc.formats", "gecko_mlc.targets"),
    "compile": (
        "gecko_mlc.compile",
        "gecko_mlc.config",
        "gecko_mlc.cuda_toolkit",
        "gecko_mlc.formats",
        "gecko_mlc.model",
        "gecko_mlc.state",
        "gecko_mlc.targets",
        "gecko_mlc.tir_kernels",
    ),
}
TORCH = {"gecko_mlc/reference/gecko.py", "gecko_mlc/reference/train_demo.py", "gecko_mlc/convert/checkpoint.py"}


def imports(path: Path) -> set[str]:
    """Modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_layer_imports_only_what_is_below_it(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        for module in imports(path):
            if module.split(".")[0] == "gecko_mlc":
                assert module.startswith(ALLOWED[folder]), f"{path} imports {module}"
            assert module not in ("runtime", "compile", "tir_kernels"), f"{path} imports the bare name {module}"


def test_only_the_reference_needs_pytorch() -> None:
    for folder in ("gecko_mlc", "runtime", "compile", "tir_kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            if str(path.relative_to(ROOT)) not in TORCH:
                assert not any(m.split(".")[0] == "torch" for m in imports(path)), path


def test_running_loads_neither_compiler_nor_pytorch(home: Path) -> None:
    """And importing the package loads next to nothing."""
    script = """
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
"""
    environment = {**os.environ, "GECKO_MLC_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def documented_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^\$ (?:\.venv/bin/)?gecko-mlc (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_exist(line: str) -> None:
    """Every command of the README parses: its name, its options, its arguments."""
    import shlex

    name, *arguments = shlex.split(line)
    group = get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments, resilient_parsing=False) as context:
        assert context.params


def test_documented_python_runs(home: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "GECKO_MLC_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5
