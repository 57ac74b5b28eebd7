"""From `--device` and the options beside it to the backend that compiles."""

from __future__ import annotations

from collections.abc import Mapping

from gecko_mlc.compile.backends.backend import Backend, Options
from gecko_mlc.targets import find, targets

AUTO = "auto"


def compile_target(
    device: str,
    host: str | None = None,
    mcpu: str | None = None,
    architectures: str | None = None,
    installed: Mapping[str, int] | None = None,
    portable: bool = False,
) -> Backend:
    """The backend of the target `device`, for the LLVM triple `host` with the CPU `mcpu`; this machine's by default, or
    one of its kind if `portable`.

    `architectures` are GPUs', like "sm_80,sm_90", or "auto", the default: what this machine has, which `installed` says
    for each target. The device `auto` is the first target that fits. Raises `GeckoError` for an unknown device and
    `ValueError` for an unknown triple, CPU or architecture, naming the known ones.
    """
    options, found = Options(host, mcpu, architectures, portable), installed or {}
    candidates = targets() if device == AUTO else (find(device),)
    chosen = next(t for t in candidates if device != AUTO or t.backend.fits(options, found.get(t.name)))
    backend: Backend = chosen.backend(chosen, options, found.get(chosen.name))
    return backend
