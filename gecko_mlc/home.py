"""The home folder: where model folders and libraries that were made here are kept, and what is trusted."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from gecko_mlc.formats.errors import GeckoError

VARIABLE = "GECKO_MLC_HOME"
_NAME = "gecko_mlc"
_WAY_OUT = f"{VARIABLE} says where gecko-mlc keeps what it makes: set it to a folder that can be written"

_package: Path | None = None


def use_package(folder: Path) -> None:
    """Run from a folder of `gecko-mlc package`: its models are known by their names, its libraries are trusted."""
    global _package
    _package = folder.resolve()


def package() -> Path | None:
    """The package that this runs from, if it does."""
    return _package


def home_folder() -> Path:
    """`$GECKO_MLC_HOME`, or a folder in the user's cache; among temporary files for a user without a home, or with one
    that cannot be written. It may not be there yet.

    Raises `GeckoError` when `GECKO_MLC_HOME` leads nowhere, or what is among the temporary files is not this user's.
    """
    if named := os.environ.get(VARIABLE):
        folder = _expanded(named)
        if folder is None:
            raise GeckoError(f"{VARIABLE}={named}: there is no such user's home")
        return Path(os.path.abspath(folder))
    usual = _usual_folder()
    if usual is not None and (os.path.exists(usual) or _can_be_made(usual)):
        return usual
    return _temporary_folder()


def _usual_folder() -> Path | None:
    """Where the system's conventions put it; None for a user without a home."""
    if sys.platform in ("darwin", "win32"):
        return platformdirs.user_cache_path(_NAME, appauthor=False)
    for parent in (os.environ.get("XDG_CACHE_HOME", ""), "~/.cache"):
        folder = _expanded(parent)
        if folder is not None and folder.is_absolute():
            return folder / _NAME
    return None


def _expanded(path: str) -> Path | None:
    """A path with its ~, for which an empty HOME is none; None for one of a user that is not known."""
    if path.split("/")[0] == "~" and not os.path.isabs(os.environ.get("HOME", "")):
        import pwd

        try:
            path = pwd.getpwuid(os.getuid()).pw_dir + path[1:]
        except KeyError:
            return None
    expanded = os.path.expanduser(path)
    return None if expanded.startswith("~") else Path(expanded)


def _can_be_made(folder: Path) -> bool:
    parent = folder.parent
    while not os.path.exists(parent):
        parent = parent.parent
    return os.access(parent, os.W_OK | os.X_OK)


def _temporary_folder() -> Path:
    """A folder for this user alone, among those of all."""
    try:
        folder = Path(tempfile.gettempdir(), f"{_NAME}-{os.getuid()}")
        with suppress(FileExistsError):
            folder.mkdir(0o700)
        status = folder.lstat()
    except OSError as error:
        raise GeckoError(f"there is no home folder, and no temporary one: {error.strerror}; {_WAY_OUT}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise GeckoError(f"{folder}: not a folder of this user's alone; {_WAY_OUT}")
    return folder


@contextmanager
def writing() -> Iterator[None]:
    """In the block the home folder is written: what the system refuses is an error that says where else to write."""
    try:
        yield
    except BrokenPipeError:  # Of what is said meanwhile.
        raise
    except OSError as error:
        raise GeckoError(f"{error.filename or home_folder()}: {error.strerror or error}; {_WAY_OUT}") from None


@contextmanager
def locked(name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time is in the block of this `name`; `waiting` is called when another one is."""
    with writing():
        folder = home_folder() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_once(
    path: Path, ready: Callable[[], bool], make: Callable[[Path], None], waiting: Callable[[], None] = lambda: None
) -> None:
    """See to it that `path` in the home folder is `ready`: if it is not, `make` makes it at the path that it is given,
    whole or not at all, in one process at a time. `waiting` is called when another one is making it.

    Raises `GeckoError` when the home folder cannot be written.
    """
    if ready():
        return
    with locked(path.name, waiting), writing():
        if ready():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # By a process that was killed.
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            make(Path(temporary) / path.name)
            if path.is_dir():
                os.replace(path, Path(temporary) / "before")
            os.replace(Path(temporary) / path.name, path)
