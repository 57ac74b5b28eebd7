"""CPUs, and the code of the host for every other target: LLVM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm.target import codegen

from gecko_mlc.compile.backends.backend import Backend, Built, Options
from gecko_mlc.compile.hosts import host_triple
from gecko_mlc.compile.kernels import Kernel
from gecko_mlc.compile.pipeline import build
from gecko_mlc.formats.library import TargetSpec
from gecko_mlc.model.cpu import CPULaunches
from gecko_mlc.targets import Target

# CPU features whose absence makes a library's instructions illegal, as Linux and LLVM name them.
_CHECKED_FEATURES = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512vnni",
    "avxvnni",
    "avx512bf16",
    "neon",
    "fullfp16",
    "dotprod",
    "sve",
)

# The CPU that a triple without `--mcpu` stands for, and that launches a GPU's kernels.
_DEFAULT_CPUS = {"x86_64": "x86-64-v3", "aarch64": "generic"}


class CPUBackend(Backend):
    """One CPU: this machine's, or one of a triple."""

    launches = CPULaunches
    sources = (Path(__file__).with_name("threads.c"),)

    @classmethod
    def fits(cls, options: Options, installed: int | None) -> bool:
        """See `Backend`. There is a CPU everywhere."""
        return True

    def describe(self, target: Target, options: Options, installed: int | None) -> tuple[tvm.target.Target, TargetSpec]:
        """See `Backend`."""
        if options.architectures is not None:
            raise ValueError(
                f"--arch {options.architectures!r} is not for --device {target.name}; a CPU is chosen with --mcpu"
            )
        description, spec = host_code(target.name, options)
        return tvm.target.Target(description), spec

    def build(self, lowered: tvm.IRModule, kernels: tuple[Kernel, ...], progress: Callable[[str], None]) -> Built:
        """See `Backend`."""
        progress(f"compiling {len(kernels)} kernels for {self.spec.mcpu}")
        return Built(build(lowered, self.tvm_target), kernels)


def host_code(kind: str, options: Options) -> tuple[dict[str, str], TargetSpec]:
    """The CPU of the options, for TVM and for the metadata of a library of `kind`; if `portable`, not this very one."""
    if options.host is None and not options.portable:
        triple, cpu = codegen.llvm_get_system_triple(), options.mcpu or codegen.llvm_get_system_cpu()
    else:
        triple = host_triple(options.host or codegen.llvm_get_system_triple())
        cpu = options.mcpu or _DEFAULT_CPUS[triple.split("-")[0]]
    probe = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(probe)]
    if cpu not in known:
        raise ValueError(f"unknown CPU {cpu!r} for {triple}; expected one of {', '.join(sorted(known))}")
    description = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    available = {str(name) for name in codegen.llvm_get_cpu_features(tvm.target.Target(description))}
    features = tuple(name for name in _CHECKED_FEATURES if name in available)
    return description, TargetSpec(kind=kind, triple=triple, mcpu=cpu, features=features)
