"""Targets: an entry for each kind of machine that models are compiled for and run on.

`register` adds one, and so does an installed package with an entry point in the group `gecko_mlc.targets` that has the
target's name and leads to a `Target`.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from gecko_mlc.formats.errors import GeckoError

ENTRY_POINTS = "gecko_mlc.targets"


class Target:
    """One kind of machine, by its name in `--device`. Each part is an object or its place, "module:object", imported
    when first needed: what only runs has neither hardware nor backend.

    `hardware.of(spec)` is what schedules are written for (`tir_kernels.hardware`), a `backend` compiles
    (`compile.backends.backend`), a `player` plays a library (`runtime.players.player`). `spec` is the class of what
    libraries say of their target, for kinds that say more than others.
    """

    def __init__(
        self, name: str, hardware: Any, backend: Any, player: Any, spec: Any = "gecko_mlc.formats.library:TargetSpec"
    ) -> None:
        self.name = name
        self._hardware, self._backend, self._player, self._spec = hardware, backend, player, spec

    @property
    def hardware(self) -> Any:
        """The class of what schedules know of the machine."""
        return _resolve(self._hardware)

    @property
    def backend(self) -> Any:
        """The class of what compiles."""
        return _resolve(self._backend)

    @property
    def player(self) -> Any:
        """The class of what plays libraries."""
        return _resolve(self._player)

    @property
    def spec(self) -> Any:
        """The class of what libraries say of their target."""
        return _resolve(self._spec)


def _resolve(part: Any) -> Any:
    return resolve_name(part) if isinstance(part, str) else part


_targets = [
    Target(
        "cuda",
        "gecko_mlc.tir_kernels.hardware:CUDA",
        "gecko_mlc.compile.backends.cuda.backend:CUDABackend",
        "gecko_mlc.runtime.players.cuda:CUDAPlayer",
        "gecko_mlc.formats.library:CUDATarget",
    ),
    Target(
        "cpu",
        "gecko_mlc.tir_kernels.hardware:CPU",
        "gecko_mlc.compile.backends.cpu:CPUBackend",
        "gecko_mlc.runtime.players.tvm:TVMPlayer",
    ),
]


def register(target: Target) -> None:
    """Add a target. Raises `GeckoError` when there is one of this name."""
    if target.name in (known.name for known in _targets):
        raise GeckoError(f"there are two targets {target.name!r}; one of them needs another name")
    # What every machine has stays the last that `auto` takes.
    _targets.insert(-1, target)


def names() -> list[str]:
    """The names of all targets, of which none is loaded for it."""
    installed = (point.name for point in entry_points(group=ENTRY_POINTS))
    return list(dict.fromkeys([*(target.name for target in _targets), *installed]))


def targets() -> tuple[Target, ...]:
    """All targets, in the order in which `auto` prefers them. Raises `GeckoError` for an entry point that is broken."""
    _register_installed()
    return tuple(_targets)


def find(name: str) -> Target:
    """The target called `name`. Raises `GeckoError` with the known ones."""
    for known in (lambda: _targets, targets):
        for target in known():
            if target.name == name:
                return target
    raise GeckoError(f"unknown target {name!r}; expected one of {', '.join(target.name for target in _targets)}")


@functools.cache
def _register_installed() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        try:
            target = point.load()
        except Exception as error:
            raise GeckoError(f"the target {point.name!r} ({point.value}) cannot be loaded: {error}") from error
        if not isinstance(target, Target) or target.name != point.name:
            raise GeckoError(f"the target {point.name!r} ({point.value}) is no gecko_mlc.targets.Target of this name")
        register(target)
