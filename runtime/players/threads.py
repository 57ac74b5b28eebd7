"""The threads of a library for CPUs, which come with it: how many they are."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from gecko_mlc.formats.errors import GeckoError, OptionError
from gecko_mlc.runtime.devices import host

VARIABLE = "TVM_NUM_THREADS"


def default_threads() -> int:
    """What `TVM_NUM_THREADS` says, else one for each usable core. Raises `GeckoError` for what is no number."""
    if not (text := os.environ.get(VARIABLE, "").strip()):
        return host.usable_cores()
    if not (text.isascii() and text.isdigit() and int(text)):
        raise GeckoError(f"{VARIABLE}={text}: expected a number of threads, from 1")
    return min(int(text), host.processors())


def check_threads(threads: int) -> None:
    """Raises `OptionError` for a number that is not 1 to that of this machine's processors."""
    if not 1 <= threads <= host.processors():
        raise OptionError("threads", f"should be 1 to {host.processors()}, this machine's processors, got {threads}")


class LibraryThreads:
    """Makes an opened library run its parallel loops on threads of its own, in place of TVM's."""

    def __init__(self, path: Path) -> None:
        # Once more than TVM does, so the code stays where it is while helpers run it.
        library = ctypes.CDLL(str(path.resolve()))
        self._set = getattr(library, "gecko_mlc_set_threads", None)
        if self._set is not None:  # Not in a GPU's: its host code has no such loops.
            launch = ctypes.cast(library.gecko_mlc_parallel_launch, ctypes.c_void_p)
            ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch").value = launch.value
        self._default = default_threads()

    def use(self, threads: int | None) -> None:
        """Use so many from now on, by default one for each usable core."""
        if self._set is not None:
            self._set(threads or self._default)
