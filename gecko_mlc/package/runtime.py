"""Folders that run models where no compiler is: gecko-mlc's running side, TVM's runtime part, models and libraries.

gecko-mlc           runs the command line
requirements.txt    what it needs from PyPI
wheels/             the same, if it was asked for
trusted.json        the libraries that are its own
python/             gecko_mlc and tvm
MODEL/              a model folder with its libraries in it
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.weights import TENSOR_CACHE, read_tensor_cache
from gecko_mlc.package.requirements import REQUIREMENTS, WHEELS, oldest_python, requirements
from gecko_mlc.runtime.players.player import Player
from gecko_mlc.trust import TRUSTED

# The running side, with all folders below these or the files alone; everything else compiles, trains or checks.
_PACKAGES = {"gecko_mlc": False, "gecko_mlc.cli": True, "gecko_mlc.formats": True, "gecko_mlc.runtime": True}
# In them, what makes models.
_MAKING = (
    *("config.py", "state.py", "compile_process.py"),
    *("cli/compile.py", "cli/compiling.py", "cli/convert.py", "cli/package.py"),
)
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

# Older Pythons have to understand it as far as they are told that they are too old.
_LAUNCHER = """\
#!/usr/bin/env python3
\"\"\"gecko-mlc, from the folder of this file.\"\"\"

import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
venv = os.path.join(here, "venv")
own = os.path.join(venv, "bin", "python")
bare = getattr(sys, "base_prefix", sys.prefix) == sys.prefix
if bare and os.path.exists(own):
    os.execv(own, [own] + sys.argv)
if sys.version_info < OLDEST:
    sys.exit("error: this needs Python OLDEST_TEXT or later; %s is %d.%d" % ((sys.executable,) + sys.version_info[:2]))
# Nothing else that lies beside this file, or in the current folder, is ever imported.
sys.path[:] = [os.path.join(here, "python")] + [p for p in sys.path if p and os.path.realpath(p) != here]
try:
    from pathlib import Path

    from gecko_mlc.cli import main
    from gecko_mlc.home import use_package

    use_package(Path(here))
    main()
except ModuleNotFoundError as error:
    install = [sys.executable, "-m", "venv", venv, "&&", own] if bare else [sys.executable]
    install += ["-m", "pip", "install", "-r", os.path.join(here, "requirements.txt")]
    if os.path.isdir(os.path.join(here, "wheels")):
        install += ["--no-index", "--find-links", os.path.join(here, "wheels")]
    sys.exit("error: there is no %s; install it: %s" % (error.name, " ".join(install)))
"""

_README = """\
# Gecko models, ready to run

This folder has {models}, for {devices} on Linux ({architecture}){needs}.

    python3 -m venv venv
    venv/bin/pip install {options}-r requirements.txt
    ./gecko-mlc chat {model}

{install}

`gecko-mlc` and the models' names work from any folder, and through a link, too; with another environment than `venv`
give it to that environment's Python. `gecko-mlc info` says what the machine has, and what is missing.
"""
_OFFLINE = "--no-index --find-links wheels "
_WITH_WHEELS = """\
That needs Python {python}, and no network: what comes from PyPI is in `wheels/`. With another Python, {oldest} or
later, leave `{offline}` out."""
_WITHOUT_WHEELS = """\
That needs Python {oldest} or later, and a network. For a machine that has none, fetch what comes from PyPI on one that
is like it, with the same version of Python, and give pip there `{offline}` besides:

    python3 -m pip download --only-binary=:all: --dest wheels -r requirements.txt"""
# What a model cannot be called.
OWN_NAMES = {"gecko-mlc", "python", REQUIREMENTS, WHEELS, TRUSTED, "README.md"}
# Files whose names begin so go wherever their folder goes.
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


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


def write_runtime(folder: Path, players: Sequence[type[Player]]) -> None:
    """Everything but the models and what comes from PyPI: what runs them by any of the `players`."""
    python = folder / "python"
    for package, nested in _PACKAGES.items():
        _copy_python(_location(package), python / package.replace(".", "/"), nested)
    for name in _MAKING:
        (python / "gecko_mlc" / name).unlink()
    if libraries := sorted({library for player in players for library in player.tvm_libraries}):
        _copy_tvm(python, libraries)
    lines = requirements(players)
    (folder / REQUIREMENTS).write_text("\n".join(lines) + "\n")
    oldest = oldest_python(lines)
    launcher = folder / "gecko-mlc"
    launcher.write_text(_LAUNCHER.replace("OLDEST_TEXT", "{}.{}".format(*oldest)).replace("OLDEST", str(oldest)))
    launcher.chmod(0o755)


def write_readme(folder: Path, devices: Mapping[str, type[Player]], architecture: str, models: Sequence[str]) -> None:
    """How the package in `folder`, which is complete but for this, is installed and used."""
    wheels = (folder / WHEELS).is_dir()
    needs = dict.fromkeys(player.needs for player in devices.values() if player.needs)
    install = (_WITH_WHEELS if wheels else _WITHOUT_WHEELS).format(
        python="{}.{}".format(*sys.version_info),
        oldest="{}.{}".format(*oldest_python((folder / REQUIREMENTS).read_text().splitlines())),
        offline=_OFFLINE.strip(),
    )
    text = _README.format(
        models=" and ".join(models),
        devices=" or ".join(devices),
        architecture=architecture,
        needs="".join(f"; a GPU needs {need}" for need in needs),
        options=_OFFLINE if wheels else "",
        model=models[0],
        install=install,
    )
    (folder / "README.md").write_text(text)


def copy_model(source: Path, folder: Path, weights: bool, progress: Callable[[int, int], None]) -> None:
    """What runs of a model folder but its libraries; `weights` are its shards and their index."""
    names = [CHAT_CONFIG, *read_chat_config(source).tokenizer_files]
    names += [file.name for file in source.iterdir() if file.name.startswith(_LEGAL)]
    if weights:
        names += [TENSOR_CACHE, *(shard.dataPath for shard in read_tensor_cache(source).records)]
    files = [source / name for name in dict.fromkeys(names) if name == Path(name).name and (source / name).is_file()]
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
