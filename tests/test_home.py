"""Where the home folder is, and how what is kept there is made."""

from __future__ import annotations

import errno
import os
import pwd
import threading
import time
from pathlib import Path

import pytest

from gecko_mlc import home
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.home import home_folder, make_once, writing

USER = pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"GECKO_MLC_HOME": "/srv/gecko"}, "/srv/gecko"),
        ({"GECKO_MLC_HOME": "~/gecko", "HOME": "/home/ada"}, "/home/ada/gecko"),
        ({"GECKO_MLC_HOME": "~/gecko", "HOME": ""}, f"{USER}/gecko"),
        ({"GECKO_MLC_HOME": "here"}, "{current}/here"),
        ({"GECKO_MLC_HOME": "", "HOME": "{current}"}, "{current}/.cache/gecko_mlc"),
        ({"HOME": "{current}", "XDG_CACHE_HOME": "{current}/xdg"}, "{current}/xdg/gecko_mlc"),
        ({"HOME": "{current}", "XDG_CACHE_HOME": "~/xdg"}, "{current}/xdg/gecko_mlc"),
        ({"HOME": "{current}", "XDG_CACHE_HOME": ""}, "{current}/.cache/gecko_mlc"),
        ({"HOME": "{current}", "XDG_CACHE_HOME": "relative"}, "{current}/.cache/gecko_mlc"),
        ({"HOME": ""}, f"{USER}/.cache/gecko_mlc"),
        ({}, f"{USER}/.cache/gecko_mlc"),
    ],
)
def test_where_it_is(variables: dict[str, str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GECKO_MLC_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(current=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert str(home_folder()) == folder.format(current=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of a container, without an entry or a home; where temporary files are."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("GECKO_MLC_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("user_home", [None, "", "/proc", "/nonexistent/../proc"])
def test_a_user_without_a_home_has_a_private_folder(
    user_home: str | None, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if user_home is not None:
        monkeypatch.setenv("HOME", user_home)
        # Root may write everywhere.
        monkeypatch.setattr(home.os, "access", lambda path, mode: False)
    folder = home_folder()
    assert folder == nobody / f"gecko_mlc-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert home_folder() == folder


@pytest.mark.parametrize("kind", ["open", "link", "file", "another's"])
def test_a_private_folder_that_is_not_is_refused(kind: str, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nobody / f"gecko_mlc-{os.getuid()}"
    if kind == "link":
        (nobody / "elsewhere").mkdir(0o700)
        folder.symlink_to(nobody / "elsewhere")
    elif kind == "file":
        folder.touch(0o600)
    else:
        folder.mkdir(0o777 if kind == "open" else 0o700)
        folder.chmod(0o777 if kind == "open" else 0o700)
    if kind == "another's":
        folder.rename(nobody / f"gecko_mlc-{os.getuid() + 1}")
        monkeypatch.setattr(home.os, "getuid", lambda uid=os.getuid() + 1: uid)
    with pytest.raises(GeckoError, match="not a folder of this user's alone; GECKO_MLC_HOME says where"):
        home_folder()


def test_a_user_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", "~no-such-user/gecko")
    with pytest.raises(GeckoError, match="GECKO_MLC_HOME=~no-such-user/gecko: there is no such user's home"):
        home_folder()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_cannot_be_written_names_the_way_out(code: int) -> None:
    with pytest.raises(GeckoError) as raised, writing():
        raise OSError(code, os.strerror(code), "/srv/gecko/libs")
    said = str(raised.value)
    assert said.startswith(f"/srv/gecko/libs: {os.strerror(code)}; GECKO_MLC_HOME says where")
    assert "\n" not in said


def test_it_is_made_once_by_whoever_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits, says so, and takes what the first one made."""
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path))
    path, made, waited = tmp_path / "libs" / "a.so", [], []
    first_is_at_it, second_waits = threading.Event(), threading.Event()

    def make(output: Path) -> None:
        first_is_at_it.set()
        assert second_waits.wait(30)
        output.write_text("whole")
        made.append(output)

    def wait() -> None:
        waited.append(True)
        second_waits.set()

    first = threading.Thread(target=make_once, args=(path, path.exists, make))
    first.start()
    assert first_is_at_it.wait(30)
    make_once(path, path.exists, make, wait)
    first.join()
    assert (len(made), waited, path.read_text()) == (1, [True], "whole")
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_or_was_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path))
    path = tmp_path / "models" / "demo"
    path.mkdir(parents=True)
    (path / "damaged").touch()
    (tmp_path / "models" / ".demo.killed").mkdir()

    def interrupted(output: Path) -> None:
        output.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(path, lambda: False, interrupted)
    assert [file.name for file in path.parent.iterdir()] == ["demo"]
    make_once(path, (path / "new").exists, lambda output: (output.mkdir(), (output / "new").touch()))
    assert [file.name for file in path.iterdir()] == ["new"]


def test_an_unlocked_folder_does_not_stay_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path))
    begun = time.monotonic()
    for _ in range(2):
        make_once(tmp_path / "a", lambda: False, lambda output: output.write_text("a"))
    assert time.monotonic() - begun < 5
