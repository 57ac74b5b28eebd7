"""NVIDIA GPUs of given architectures: machine code for each, and PTX for those between them and after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import tvm

from gecko_mlc.compile.backends.backend import Backend, Built, Options
from gecko_mlc.compile.backends.cpu import host_code
from gecko_mlc.compile.backends.cuda.compiler import FATBIN_MAGIC, find_compiler
from gecko_mlc.compile.backends.cuda.driver import compiling
from gecko_mlc.compile.backends.cuda.pipeline import PIPELINE
from gecko_mlc.compile.kernels import DeviceFunction, Kernel
from gecko_mlc.compile.pipeline import build
from gecko_mlc.compile.plan import keep_split, requirements
from gecko_mlc.cuda_toolkit import MINIMUM_DRIVER
from gecko_mlc.formats import plan
from gecko_mlc.formats.library import CUDATarget
from gecko_mlc.model.cuda import CUDALaunches
from gecko_mlc.targets import Target
from gecko_mlc.tir_kernels.hardware import USUAL_SHARED_BYTES

ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
_SOURCE, _FATBIN = "kernels.cu", "kernels.fatbin"


class CUDABackend(Backend):
    """GPUs of `--arch`, like "sm_80,sm_90", or of "auto", the default: this machine's."""

    launches = CUDALaunches
    columns = ("threads", "registers", "shared", "stack", "spills")
    spec: CUDATarget

    @classmethod
    def fits(cls, options: Options, installed: int | None) -> bool:
        """See `Backend`."""
        return options.architectures is not None or (options.host is None and _architecture_of(installed) is not None)

    @classmethod
    def tools(cls) -> list[tuple[str, str]]:
        """See `Backend`."""
        try:
            compiler = find_compiler()
        except RuntimeError as error:
            return [("cuda compiler", f"none ({error})")]
        return [("cuda compiler", f"{compiler.name}, {compiler.path}")]

    def describe(self, target: Target, options: Options, installed: int | None) -> tuple[tvm.target.Target, CUDATarget]:
        """See `Backend`. The host's code is for most CPUs: the library goes to another machine."""
        capabilities = _capabilities(options.architectures, installed)
        host, code = host_code(target.name, options._replace(portable=True))
        spec = CUDATarget(
            **code.model_dump(),
            architectures=capabilities,
            # PTX of the lowest, for all GPUs between the given ones; of the highest, for later GPUs.
            ptx=tuple(sorted({capabilities[0], capabilities[-1]})),
            minimum_cuda=MINIMUM_DRIVER,
        )
        gpu = {"kind": "cuda", "arch": f"sm_{capabilities[0]}", "max_threads_per_block": 1024, "thread_warp_size": 32}
        return tvm.target.Target(gpu, host=host), spec

    def build(self, lowered: tvm.IRModule, kernels: tuple[Kernel, ...], progress: Callable[[str], None]) -> Built:
        """See `Backend`."""
        compiler = find_compiler()
        names = ", ".join(f"sm_{a}" for a in self.spec.architectures)
        with compiling(
            compiler, self.spec, lambda: progress(f"compiling the kernels for {names} with {compiler.name}")
        ) as done:
            progress("generating the kernels' code")
            with keep_split() as kept:
                executable = build(lowered, self.tvm_target, PIPELINE)
        (code,), (split,) = done, kept
        kernels = tuple(kernel.with_usage(code.usage) for kernel in kernels)
        _check_shared_memory(kernels)
        return Built(executable, kernels, {_SOURCE: code.source.encode(), _FATBIN: code.fatbin}, split)

    def check(self, library: Path, built: Built) -> None:
        """The library holds what was compiled, and no source to be compiled where it runs."""
        content, fatbin = library.read_bytes(), built.artifacts[_FATBIN]
        if fatbin[:4] != FATBIN_MAGIC or fatbin not in content or b"__global__" in content:
            raise AssertionError("the library does not hold the kernels' machine code")

    def requirements(self, kernels: Mapping[str, plan.Kernel], split: tvm.IRModule) -> plan.Requirements:
        """See `Backend`."""
        return requirements(min(self.spec.architectures), kernels, split)

    def arguments(self) -> dict[str, str]:
        """See `Backend`."""
        return {"arch": ",".join(f"sm_{a}" for a in self.spec.architectures), **super().arguments()}

    @property
    def caption(self) -> str:
        """See `Backend`."""
        names = ", ".join(f"sm_{a}" for a in self.spec.architectures)
        return f"{names}; shared memory in KiB, stack and spills in bytes"

    def row(self, kernel: Kernel) -> list[str]:
        """A line for each device function. What differs by architecture is given in their order, once where it is the
        same for all."""
        lines = [self._usage(function) for function in kernel.device_functions]
        return ["\n".join(column) for column in zip(*lines, strict=True)]

    def _usage(self, function: DeviceFunction) -> list[str]:
        usages = [function.usage[a] for a in self.spec.architectures]
        columns = (
            [str(function.threads)],
            [str(u.registers) for u in usages],
            [f"{(u.shared_bytes + function.dynamic_shared_bytes) / 1024:.1f}" for u in usages],
            [str(u.stack_bytes) for u in usages],
            [str(u.spill_bytes) for u in usages],
        )
        return [" ".join(values if len(set(values)) > 1 else values[:1]) for values in columns]


def _capabilities(architectures: str | None, installed: int | None) -> tuple[int, ...]:
    """Of `--arch`, in rising order."""
    if architectures not in (None, "auto"):
        return _parse_architectures(architectures)
    own = _architecture_of(installed)
    if own is None:
        found = "there is no GPU here" if installed is None else f"this machine's GPU is sm_{installed}"
        raise ValueError(
            f"--arch has to say which GPUs to compile for, as {found};"
            f" one or several of {', '.join(ARCHITECTURES)}, like --arch sm_80,sm_90"
        )
    return (own,)


def _parse_architectures(text: str) -> tuple[int, ...]:
    """The compute capabilities of a list like "sm_80,sm_90", in rising order."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(
            f"--arch {text!r}: unknown architecture {unknown[0]!r}; expected one or several, separated by commas,"
            f" of {', '.join(ARCHITECTURES)}"
        )
    return tuple(sorted({int(name.removeprefix("sm_")) for name in names}))


def _architecture_of(capability: int | None) -> int | None:
    """The architecture to compile for, for a GPU of this compute capability; None when there is none."""
    known = [int(name.removeprefix("sm_")) for name in ARCHITECTURES]
    # Code for 8.7, of Tegra, runs nowhere else.
    fitting = [a for a in known if capability is not None and a <= capability and (a != 87 or capability == 87)]
    return max(fitting, default=None)


def _check_shared_memory(kernels: tuple[Kernel, ...]) -> None:
    """TVM asks for more than the usual shared memory only for kernels whose dynamic part alone is more."""
    for function in (function for kernel in kernels for function in kernel.device_functions):
        static, dynamic = max(used.shared_bytes for used in function.usage.values()), function.dynamic_shared_bytes
        if dynamic < USUAL_SHARED_BYTES < static + dynamic:
            raise AssertionError(f"{function.name} could not be launched: {static} + {dynamic} bytes")
