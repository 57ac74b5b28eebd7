"""Folders that run models where no compiler is: gecko-mlc's running side, TVM's runtime part, models and libraries.

gecko-mlc           runs the command line
requirements.txt    what it needs from PyPI
python/             gecko_mlc and tvm
MODEL/              a model folder with its library in it
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution, requires
from pathlib import Path

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.weights import TENSOR_CACHE, read_tensor_cache
from gecko_mlc.runtime.players.player import Player

# The running side; everything else compiles, trains or checks.
# With all folders below them, or the files alone.
_PACKAGES = {"gecko_mlc": False, "gecko_mlc.cli": True, "gecko_mlc.formats": True, "gecko_mlc.runtime": True}
# Folders of TVM's package that its runtime does without.
_COMPILER_FOLDERS = (
    "3rdparty",
    "backend/*",
    "cmake",
    "contrib",
    "exec",
    "include",
    "lib64",
    "relax",
    "s_tir",
    "src",
    "testing",
    "topi",
    "web",
)

_LAUNCHER = """\
#!/usr/bin/env python3
\"\"\"gecko-mlc, from the folder of this file.\"\"\"

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here / "python"))
try:
    from gecko_mlc.cli import main

    main()
except ModuleNotFoundError as error:
    sys.exit(f"error: there is no {error.name}; install it: {sys.executable} -m pip install -r {here}/requirements.txt")
"""

_README = """\
# Gecko models, ready to run

This folder needs Python 3.10 or later on Linux ({architecture}){needs}:

    python3 -m venv venv
    venv/bin/pip install -r requirements.txt
    venv/bin/python gecko-mlc chat {model}

`venv/bin/python gecko-mlc info` says what this machine has, and what is missing.
"""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is at `path` when the block ends well, and nowhere when it does not.

    Raises `GeckoError` when something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise GeckoError(f"{path}: there already; packages go into a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_runtime(folder: Path, player: type[Player], architecture: str, models: Sequence[str]) -> None:
    """Everything but the models: what runs them by `player`."""
    python = folder / "python"
    for package, nested in _PACKAGES.items():
        _copy_python(_location(package), python / package.replace(".", "/"), nested)
    if player.tvm_libraries:
        _copy_tvm(python, player.tvm_libraries)
    launcher = folder / "gecko-mlc"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    (folder / "requirements.txt").write_text("\n".join(_requirements(player)) + "\n")
    needs = f", and {player.needs}" if player.needs else ""
    (folder / "README.md").write_text(_README.format(architecture=architecture, needs=needs, model=models[0]))


def copy_model(source: Path, folder: Path, weights: bool, progress: Callable[[int, int], None]) -> None:
    """A model folder's files; `weights` are its shards and their index. Libraries stay where they are."""
    parts = {TENSOR_CACHE, *(shard.dataPath for shard in read_tensor_cache(source).records)}
    everything = [file for file in sorted(source.iterdir()) if file.is_file() and file.suffix != ".so"]
    files = [file for file in everything if weights or file.name not in parts]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        shutil.copyfile(file, folder / file.name)
        done += file.stat().st_size
        progress(done, total)


def total_bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _location(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise GeckoError(f"{package} is not installed")
    return Path(spec.origin).parent


def _copy_python(source: Path, target: Path, nested: bool, without: Sequence[str] = ()) -> None:
    """The Python files of a folder and, if `nested`, of the folders in it but those that match `without`."""
    for file in sorted(source.rglob("*.py") if nested else source.glob("*.py")):
        relative = file.relative_to(source)
        if not any(parent.match(pattern) for parent in relative.parents for pattern in without):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)


def _copy_tvm(python: Path, libraries: Sequence[str]) -> None:
    tvm = _location("tvm")
    _copy_python(tvm, python / "tvm", nested=True, without=_COMPILER_FOLDERS)
    (python / "tvm" / "lib").mkdir()
    for name in libraries:
        shutil.copyfile(tvm / "lib" / name, python / "tvm" / "lib" / name)
    for name in ("LICENSE", "NOTICE"):
        shutil.copyfile(tvm / name, python / "tvm" / name)
    shutil.copytree(tvm / "licenses", python / "tvm" / "licenses")
    # Its version, for those who ask.
    metadata = python / f"apache_tvm-{distribution('apache-tvm').version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(distribution("apache-tvm").read_text("METADATA") or "")


def _requirements(player: type[Player]) -> list[str]:
    """What the running side needs from PyPI: all that gecko-mlc does but TVM, which comes along, and what `player`
    does, in the version of gecko-mlc's extras if they name it."""
    declared = requires("gecko-mlc") or []
    needed = [r for r in declared if ";" not in r and not r.startswith("apache-tvm==")]
    extras = [r.split(";")[0].strip() for r in declared if "extra" in r]
    return needed + [next((r for r in extras if r.startswith(name)), name) for name in player.requirements]
