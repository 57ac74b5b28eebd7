"""Compiling in a process of its own: the one that runs models needs no more than TVM's runtime.

`python -m gecko_mlc.compile_process REQUEST OUTPUT` is that process. It writes a line of JSON for each step that it
begins, and one for the error that it ends with.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.search_path import environment, python

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_DISK_FULL = os.strerror(errno.ENOSPC)


class Request(BaseModel):
    """A library to compile: of which model, quantization and dtype of the state, with how many slots, for which target
    of this machine. `installed` are the architectures of this machine's devices, by their targets."""

    config: dict[str, Any]
    quantization: str
    state_dtype: str | None
    slots: int
    device: str
    installed: dict[str, int]


def compile_in_process(request: Request, output: Path, step: Callable[[str], None]) -> None:
    """Compile the library `output`, into a folder that is there; `step` is told each step.

    The process ends with this call, however that does, and what it leaves is in the folder. Raises `GeckoError` with
    what went wrong, and `OSError` for a disk that is full.
    """
    command = python(__name__, request.model_dump_json(), str(output))
    variables = environment(TMPDIR=str(output.parent))
    # It is how TVM's runtime is asked for alone.
    variables.pop("TVM_USE_RUNTIME_LIB", None)
    with (
        tempfile.TemporaryFile("w+", errors="replace", dir=output.parent) as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=variables,
            cwd=output.parent,
        ) as process,
    ):
        assert process.stdout is not None
        error = None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "step" in said:
                    step(said["step"])
                error = said.get("error")
        except BaseException:
            process.kill()
            raise
        if process.wait():
            error = error or _how_it_ended(process.returncode, log)
            if _DISK_FULL in error:
                raise OSError(errno.ENOSPC, _DISK_FULL, str(output.parent.parent))
            raise GeckoError(f"compiling failed: {error}")


def _how_it_ended(code: int, log: TextIO) -> str:
    """Of a process that could not say it itself."""
    log.seek(0)
    last = "".join(line for line in log if line.strip())[-2000:].strip().rpartition("\n")[2]
    if code == -signal.SIGKILL:
        return "the compiler was killed, maybe for want of memory"
    return f"the compiler ended with {f'signal {-code}' if code < 0 else f'code {code}'}" + f": {last}" * bool(last)


def _main(request: str, output: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    # What others print goes where errors do.
    with os.fdopen(os.dup(1), "w") as steps:
        os.dup2(2, 1)

        def tell(**line: str) -> None:
            print(json.dumps(line), file=steps, flush=True)

        try:
            _compile(Request.model_validate_json(request), Path(output), lambda step: tell(step=step))
        except (GeckoError, ValueError, RuntimeError, OSError) as error:
            tell(error=str(error))
            sys.exit(1)


def _compile(request: Request, output: Path, step: Callable[[str], None]) -> None:
    from gecko_mlc.config import validate_config
    from gecko_mlc.formats.quantization import quantization

    config = validate_config(request.config, "the model's config")
    scheme = quantization(request.quantization, request.state_dtype)
    step("loading the compiler")
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target

    target = compile_target(request.device, installed=request.installed)
    compile_library(config, scheme, target, output, request.slots, progress=step)


if __name__ == "__main__":
    _main(*sys.argv[1:])
