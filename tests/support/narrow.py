"""A made-up target, as another package would bring it: CPUs whose vectors are narrower than they are."""

from __future__ import annotations

from typing import Any

from gecko_mlc.compile.backends.backend import Options
from gecko_mlc.compile.backends.cpu import CPUBackend
from gecko_mlc.formats.library import TargetSpec
from gecko_mlc.runtime.players.tvm import TVMPlayer
from gecko_mlc.targets import Target
from gecko_mlc.tir_kernels.hardware import CPU


class NarrowTarget(TargetSpec):
    """A CPU, and how many lanes are used of it."""

    lanes: int

    def rows(self) -> list[tuple[str, str]]:
        return [*super().rows(), ("lanes", str(self.lanes))]


class Narrow:
    """What schedules are written for."""

    @staticmethod
    def of(spec: NarrowTarget) -> CPU:
        return CPU(spec.lanes, 16)


class NarrowBackend(CPUBackend):
    """Compiles as for a CPU."""

    def describe(self, target: Target, options: Options, installed: int | None) -> tuple[Any, NarrowTarget]:
        tvm_target, spec = super().describe(target, options, installed)
        return tvm_target, NarrowTarget(**spec.model_dump(), lanes=2)


class NarrowPlayer(TVMPlayer):
    """Plays as on a CPU."""

    @classmethod
    def machine(cls) -> list[Any]:
        return ["narrow", *super().machine()]


TARGET = Target(
    "narrow",
    hardware="support.narrow:Narrow",
    backend="support.narrow:NarrowBackend",
    player="support.narrow:NarrowPlayer",
    spec="support.narrow:NarrowTarget",
)
