"""Nothing is imported, run or loaded from the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gecko_mlc.search_path import environment, import_path, load_library, package_folders, which

ROOT = Path(__file__).parents[1]
# Modules that commands import, and one that only exists here.
SHADOWS = ("typer", "numpy", "pydantic", "shutil", "ctypes", "tokenizers", "ziglang", "nvidia", "sitecustomize")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose modules, programs and libraries say that they ran."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\n")
    for package in ("gecko_mlc", "tvm", "nvidia"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('of the current folder')\n")
    program = tmp_path / "cc"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    (tmp_path / "libgecko_nothing.so").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_import_path_holds_the_current_folder_only_if_it_is_named(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = hostile / "link"
    link.symlink_to(hostile)
    monkeypatch.setattr(sys, "path", ["", ".", str(hostile), str(link), "/usr/lib/python3", str(hostile / "gecko_mlc")])
    for named in ("", ":/opt", ".:/opt"):
        monkeypatch.setenv("PYTHONPATH", named)
        assert import_path() == ["/usr/lib/python3", str(hostile / "gecko_mlc")]
    monkeypatch.setenv("PYTHONPATH", str(hostile))
    assert str(hostile) in import_path()


def test_a_package_in_the_current_folder_goes_last_where_this_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3"])
    assert import_path() == ["/usr/lib/python3", str(ROOT)]


@pytest.mark.parametrize("variable", ["PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH"])
def test_processes_get_no_relative_folders(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"{os.pathsep}/opt/a{os.pathsep}.{os.pathsep}bin{os.pathsep}/opt/b")
    assert environment()[variable] == f"/opt/a{os.pathsep}/opt/b"
    monkeypatch.setenv(variable, ".")
    assert variable not in environment()
    assert environment(**{variable: "/opt/c"})[variable] == "/opt/c"


def test_programs_and_packages_of_the_current_folder_are_not_found(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{os.pathsep}.{os.pathsep}/nowhere")
    assert which("cc") is None
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert package_folders("gecko_nothing") == []
    assert not any(folder.is_relative_to(hostile) for folder in package_folders("nvidia"))


@pytest.mark.parametrize("folders", [":/opt", ".", "/opt:"])
def test_libraries_of_the_current_folder_are_not_loaded(
    folders: str, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", folders)
    with pytest.raises(OSError, match=r"libgecko_nothing.so of the current folder, which is not loaded"):
        load_library("libgecko_nothing.so")


@pytest.mark.parametrize("pythonpath", ["", ":"])
def test_commands_import_nothing_of_the_current_folder(pythonpath: str, hostile: Path, home: Path) -> None:
    """Not where PYTHONPATH has an empty entry, for what gecko-mlc imports itself: Python's start is not its own."""
    if pythonpath:
        for name in ("gecko_mlc", "tvm", "nvidia"):
            (hostile / name / "__init__.py").unlink()
            (hostile / name).rmdir()
        (hostile / "sitecustomize.py").unlink()
    script = Path(sys.executable).with_name("gecko-mlc")
    environment = {**os.environ, "GECKO_MLC_HOME": str(home), "PYTHONPATH": pythonpath}
    command = [sys.executable, str(script), "generate", "gecko-demo", "-p", "The king", "--max-tokens", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (hostile / "ran").exists()
