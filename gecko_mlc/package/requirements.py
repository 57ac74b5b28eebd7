"""What a package needs from PyPI: pinned to what runs here, and as wheels for machines without a network."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from gecko_mlc import search_path
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.players.player import Player

REQUIREMENTS = "requirements.txt"
WHEELS = "wheels"
# What the running side uses of TVM comes along.
_BROUGHT = "apache-tvm"
_NAME = re.compile(r"[\w.-]+")


def requirements(players: Iterable[type[Player]]) -> list[str]:
    """Lines of pip's: what gecko-mlc and the players need, and what that needs, in the versions that are installed.

    What is not installed here, for a GPU that is elsewhere, has the version of gecko-mlc's extras.
    """
    declared = requires("gecko-mlc") or []
    extras = {_name(line): line.split(";")[0].strip() for line in declared if "extra ==" in line}
    waiting = [_name(line) for line in declared if "extra ==" not in line]
    waiting += [name for player in players for name in player.requirements]
    lines: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in lines or name == _BROUGHT:
            continue
        try:
            lines[name] = f"{name}=={version(name)}"
            waiting += [_name(line) for line in requires(name) or [] if "extra ==" not in line and _installed(line)]
        except PackageNotFoundError:
            lines[name] = extras.get(name, name)
    return [lines[name] for name in sorted(lines)]


def oldest_python(lines: Iterable[str]) -> tuple[int, int]:
    """The first version of Python that all of these requirements, and gecko-mlc, run on."""
    names = ["gecko-mlc", *(_name(line) for line in lines if _installed(line))]
    least = [re.search(r">=\s*3\.(\d+)", str(metadata(name).json.get("requires_python"))) for name in names]
    return 3, max(int(found[1]) for found in least if found)


def fetch_wheels(folder: Path) -> None:
    """Bring the wheels that a package in `folder` needs on a machine like this one, by pip as it is set up here.

    Raises `GeckoError` with pip's reason when it cannot.
    """
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    files = ["--dest", str(folder / WHEELS), "--requirement", str(folder / REQUIREMENTS)]
    command = search_path.python("pip", "download", *options, *files)
    environment = search_path.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise GeckoError(
            f"--wheels: pip could not fetch what the package needs: {reason[-1] if reason else 'no reason'}"
        )


def _name(line: str) -> str:
    """The name in a requirement, as PyPI has it."""
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else line


def _installed(line: str) -> bool:
    try:
        version(_name(line))
    except PackageNotFoundError:
        return False
    return True
