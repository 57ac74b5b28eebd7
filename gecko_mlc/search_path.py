"""Where modules, programs and shared libraries are looked for: not in the current folder.

Python imports from there with `python -m` and `python -c`, and where PYTHONPATH has an empty entry; the system takes
programs and shared libraries from there where PATH and LD_LIBRARY_PATH have one.
"""

# Commands import this before they leave the current folder out: nothing here that Python has not loaded itself.
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

# Lists of folders for the processes that are started: for programs, shared libraries, linkers and compilers.
_FOLDER_LISTS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBRARY_PATH", "COMPILER_PATH", "CPATH")
_RUN_MODULE = "import sys; sys.path[:] = {path!r}; import runpy; runpy.run_module({module!r}, None, '__main__', True)"


def import_path() -> list[str]:
    """`sys.path` without the current folder, unless PYTHONPATH names that in full. Where this package itself comes from
    there, everything else goes first."""
    here = os.path.realpath(".")
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    path = [entry for entry in sys.path if entry in named or os.path.realpath(entry or ".") != here]
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [*path, own] if own not in path and os.path.realpath(own) == here else path


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module, in a process that imports what this one does; for `environment`."""
    return [sys.executable, "-c", _RUN_MODULE.format(path=import_path(), module=module), *arguments]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for one that it starts, with `changes`: lists of folders hold no relative ones."""
    variables = {**os.environ, **changes}
    # What it names is passed on in the command line.
    variables.pop("PYTHONPATH", None)
    for name in set(_FOLDER_LISTS) & set(variables):
        variables[name] = os.pathsep.join(filter(os.path.isabs, variables[name].split(os.pathsep)))
    return {name: value for name, value in variables.items() if value or name not in _FOLDER_LISTS}


def which(program: str) -> str | None:
    """The path of a program; None where there is none."""
    import shutil

    return shutil.which(program, path=environment().get("PATH", os.defpath))


def package_folders(name: str) -> list[Path]:
    """The folders of an installed package, which is not imported; none where it is not installed."""
    from importlib.machinery import PathFinder
    from pathlib import Path

    spec = PathFinder.find_spec(name, import_path())
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []


def load_library(name: str, everywhere: bool = False) -> ctypes.CDLL:
    """The shared library of a bare name, or at a path; its symbols are for all others, too, if they are `everywhere`.

    Raises `OSError` where the system does not find it.
    """
    import ctypes

    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    relative = [folder for folder in folders if not os.path.isabs(folder)] if folders != [""] else []
    if not os.path.isabs(name) and any(os.path.exists(os.path.join(folder, name)) for folder in relative):
        raise OSError(f"LD_LIBRARY_PATH leads to {name} of the current folder, which is not loaded")
    return ctypes.CDLL(name, ctypes.RTLD_GLOBAL if everywhere else ctypes.DEFAULT_MODE)
