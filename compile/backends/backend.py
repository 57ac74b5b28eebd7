"""What a backend is: the class that compiles a model's functions for the machines of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tvm

from gecko_mlc.compile.kernels import Kernel
from gecko_mlc.formats import plan
from gecko_mlc.formats.library import TargetSpec
from gecko_mlc.targets import Target
from gecko_mlc.tir_kernels.hardware import Hardware


class Options(NamedTuple):
    """What machine to compile for, as the command line says it; by default this one. `portable` is for others, too."""

    host: str | None = None
    mcpu: str | None = None
    architectures: str | None = None
    portable: bool = False


class Built(NamedTuple):
    """An executable, its kernels with what the compiler said of them, what else was made, by file names, and of a GPU's
    kernels the functions of the host and of the device, which a launch plan is made of."""

    executable: Any
    kernels: tuple[Kernel, ...]
    artifacts: dict[str, bytes] = {}  # noqa: RUF012
    split: tvm.IRModule | None = None


class Backend(ABC):
    """Compiles for the machines that the options say: `spec` describes them in the metadata, `hardware` is what
    schedules are written for, `tvm_target` is for TVM's code generator.

    `installed` is the architecture of this machine's device, None without one. Raises `ValueError` for options that are
    unknown or another target's, naming the known ones.
    """

    # The class whose methods launch the model's kernels.
    launches: ClassVar[type[Any]]
    # C that is linked into libraries, beside the kernels.
    sources: ClassVar[tuple[Path, ...]] = ()
    # What `compile` tells of each kernel, besides its launches.
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, target: Target, options: Options, installed: int | None) -> None:
        self.tvm_target, self.spec = self.describe(target, options, installed)
        self.hardware: Hardware = target.hardware.of(self.spec)

    @classmethod
    @abstractmethod
    def fits(cls, options: Options, installed: int | None) -> bool:
        """Whether the device `auto` is one of this target, if those before it are not."""

    @classmethod
    def tools(cls) -> list[tuple[str, str]]:
        """What `info` tells of the compilers that it takes, names and values."""
        return []

    @abstractmethod
    def describe(self, target: Target, options: Options, installed: int | None) -> tuple[tvm.target.Target, TargetSpec]:
        """The machines of the options, for TVM and for the metadata."""

    @abstractmethod
    def build(self, lowered: tvm.IRModule, kernels: tuple[Kernel, ...], progress: Callable[[str], None]) -> Built:
        """Compile `compile.pipeline.lower`'s result. Raises `RuntimeError` when nothing can, or with its messages."""

    def check(self, library: Path, built: Built) -> None:  # noqa: B027
        """Raise `AssertionError` when the library that was linked is not what was built."""

    def requirements(self, kernels: Mapping[str, plan.Kernel], split: tvm.IRModule) -> plan.Requirements:
        """What a device has to have for these kernels of a launch plan; of backends that give a `split`."""
        raise NotImplementedError

    def arguments(self) -> dict[str, str]:
        """The options that would say the same."""
        return {"host": self.spec.triple, "mcpu": self.spec.mcpu}

    @property
    def caption(self) -> str:
        """What the `columns` mean."""
        return ""

    def row(self, kernel: Kernel) -> list[str]:
        """A kernel's `columns`."""
        return []
