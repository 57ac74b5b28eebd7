"""Targets: what `--device` and `--host` mean to the code generator and to the schedules."""

from __future__ import annotations

from typing import NamedTuple

import tvm
from tvm.target import codegen

from gecko_mlc.cuda_toolkit import MINIMUM_DRIVER
from gecko_mlc.formats.library import TargetSpec
from gecko_mlc.tir_kernels.hardware import CPU, CUDA, ByteDot

DEVICES = ("auto", "cpu", "cuda")
ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")

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


class CompileTarget(NamedTuple):
    """A TVM target, its description for the metadata, and the machine its schedules are written for."""

    tvm_target: tvm.target.Target
    spec: TargetSpec
    machine: CPU | CUDA


def compile_target(
    device: str,
    host: str | None = None,
    mcpu: str | None = None,
    architectures: str | None = None,
    installed: int | None = None,
) -> CompileTarget:
    """The target of `device` on the LLVM triple `host` with the CPU `mcpu`; this machine's by default.

    `architectures` are GPUs', like "sm_80,sm_90", or "auto", the default: the one of compute capability
    `installed`, this machine's, None without one. The device `auto` is a GPU if there is one to compile for,
    else a CPU. Raises `ValueError` for an unknown device, triple, CPU or architecture, naming the known ones.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    if device == "cpu" and architectures is not None:
        raise ValueError(f"--arch {architectures!r} is for --device cuda; a CPU is chosen with --mcpu")
    capabilities: tuple[int, ...] = ()
    if architectures not in (None, "auto"):
        capabilities = _parse_architectures(architectures)
    elif device != "cpu":
        own = _architecture_of(installed)
        if own is None and (device == "cuda" or architectures == "auto"):
            found = "there is no GPU here" if installed is None else f"this machine's GPU is sm_{installed}"
            raise ValueError(
                f"--arch has to say which GPUs to compile for, as {found};"
                f" one or several of {', '.join(ARCHITECTURES)}, like --arch sm_80,sm_90"
            )
        if own is not None and (device == "cuda" or architectures == "auto" or host is None):
            capabilities = (own,)
    cpu, spec, available = _cpu_target(host, mcpu, portable=bool(capabilities))
    if not capabilities:
        return CompileTarget(tvm.target.Target(cpu), spec, _machine(spec.triple, available))
    # PTX of the lowest, for all GPUs between the given ones; of the highest, for later GPUs.
    ptx = tuple(sorted({capabilities[0], capabilities[-1]}))
    spec = spec.model_copy(
        update={"kind": "cuda", "architectures": capabilities, "ptx": ptx, "minimum_cuda": MINIMUM_DRIVER}
    )
    gpu = {"kind": "cuda", "arch": f"sm_{capabilities[0]}", "max_threads_per_block": 1024, "thread_warp_size": 32}
    return CompileTarget(tvm.target.Target(gpu, host=cpu), spec, CUDA(capabilities))


def portable_cpu() -> str:
    """A CPU of this machine's kind whose code runs on most others."""
    return _DEFAULT_CPUS[codegen.llvm_get_system_triple().split("-")[0]]


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


def _cpu_target(host: str | None, mcpu: str | None, portable: bool) -> tuple[dict[str, str], TargetSpec, set[str]]:
    """A CPU for TVM and for the metadata, and all its features; if `portable`, never this machine's very own."""
    if host is None and not portable:
        triple, cpu = codegen.llvm_get_system_triple(), mcpu or codegen.llvm_get_system_cpu()
    else:
        host = host or codegen.llvm_get_system_triple()
        triple = host
        architecture = triple.split("-")[0]
        if architecture not in _DEFAULT_CPUS:
            raise ValueError(
                f"--host {host!r}: unknown architecture {architecture!r};"
                f" expected a triple of {' or '.join(_DEFAULT_CPUS)}, like aarch64-linux-gnu"
            )
        cpu = mcpu or _DEFAULT_CPUS[architecture]
    probe = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(probe)]
    if cpu not in known:
        raise ValueError(f"unknown CPU {cpu!r} for {triple}; expected one of {', '.join(sorted(known))}")
    description = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    available = {str(name) for name in codegen.llvm_get_cpu_features(tvm.target.Target(description))}
    features = tuple(name for name in _CHECKED_FEATURES if name in available)
    return description, TargetSpec(kind="cpu", triple=triple, mcpu=cpu, features=features), available


def _machine(triple: str, features: set[str]) -> CPU:
    if triple.startswith("aarch64"):
        return CPU(4, 32, ByteDot.NEON if "dotprod" in features else ByteDot.PLAIN)
    if "avx512f" in features:
        return CPU(16, 32, ByteDot.VNNI if "avx512vnni" in features else _pairs(features, "avx512bw"))
    if "avx" in features:
        return CPU(8, 16, ByteDot.VNNI if "avxvnni" in features else _pairs(features, "avx2"))
    return CPU(4, 16)


def _pairs(features: set[str], needed: str) -> ByteDot:
    return ByteDot.PAIRS if needed in features else ByteDot.PLAIN
