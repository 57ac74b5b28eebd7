"""Targets: what `--device` and `--host` mean to the code generator and to the schedules."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import tvm
from gecko_mlc.tir_kernels.machine import CUDA, Machine
from tvm.target import codegen

from gecko_mlc.abi import TargetSpec

DEVICES = ("auto", "cpu", "cuda")
ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
# What the CUDA runtime library that TVM is linked to asks of the driver.
_MINIMUM_CUDA = (13, 0)

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
    machine: Machine | CUDA


def compile_target(
    device: str, host: str | None = None, mcpu: str | None = None, architectures: str | None = None
) -> CompileTarget:
    """The target of `device` on the LLVM triple `host` with the CPU `mcpu`; this machine's by default.

    `architectures` are GPUs', like "sm_80,sm_90"; by default this machine's GPU. `auto` is this machine's
    GPU if its driver runs what is compiled here, else its CPU. Raises `ValueError` for an unknown device,
    triple, CPU or architecture, naming the known ones.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    capabilities: tuple[int, ...] = ()
    if architectures is not None:
        if device == "cpu":
            raise ValueError(f"--arch {architectures!r} is for --device cuda; a CPU is chosen with --mcpu")
        device, capabilities = "cuda", _parse_architectures(architectures)
    elif device != "cpu" and host is None and (capability := installed_gpu()) is not None:
        device, capabilities = "cuda", (capability,)
    elif device == "cuda":
        raise ValueError(
            "--device cuda needs --arch, the GPUs to compile for, where there is none to ask;"
            f" one or several of {', '.join(ARCHITECTURES)}, like --arch sm_80,sm_90"
        )
    cpu, spec, available = _cpu_target(host, mcpu, portable=bool(capabilities))
    if not capabilities:
        return CompileTarget(tvm.target.Target(cpu), spec, _machine(spec.triple, available))
    # PTX of the lowest, for all GPUs between the given ones; of the highest, for later GPUs.
    ptx = tuple(sorted({capabilities[0], capabilities[-1]}))
    spec = spec.model_copy(
        update={"kind": "cuda", "architectures": capabilities, "ptx": ptx, "minimum_cuda": _MINIMUM_CUDA}
    )
    gpu = {"kind": "cuda", "arch": f"sm_{capabilities[0]}", "max_threads_per_block": 1024, "thread_warp_size": 32}
    return CompileTarget(tvm.target.Target(gpu, host=cpu), spec, CUDA(capabilities))


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


def installed_gpu() -> int | None:
    """The architecture to compile for on this machine's first GPU; None without one that a library can run on."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if not hasattr(driver, "cuInit"):
        return None
    version, device, major, minor = (ctypes.c_int() for _ in range(4))
    major_attribute, minor_attribute = 75, 76
    if (
        driver.cuInit(0)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
        or version.value < 1000 * _MINIMUM_CUDA[0] + 10 * _MINIMUM_CUDA[1]
    ):
        return None
    capability = 10 * major.value + minor.value
    known = [int(name.removeprefix("sm_")) for name in ARCHITECTURES]
    return max((a for a in known if a <= capability and (a != 87 or capability == 87)), default=None)


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


def _machine(triple: str, features: set[str]) -> Machine:
    if triple.startswith("aarch64"):
        return Machine(lanes=4, registers=32)
    if "avx512f" in features:
        return Machine(lanes=16, registers=32)
    return Machine(lanes=8 if "avx" in features else 4, registers=16)
