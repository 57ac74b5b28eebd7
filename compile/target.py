"""Targets: what `--device` and `--host` mean to the code generator and to the schedules."""

from __future__ import annotations

from typing import NamedTuple

import tvm
from gecko_mlc.tir_kernels.machine import Machine
from tvm.target import codegen

from gecko_mlc.abi import TargetSpec

DEVICES = ("auto", "cpu")

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

# The CPU that a triple without `--mcpu` stands for.
_DEFAULT_CPUS = {"x86_64": "x86-64-v3", "aarch64": "generic"}


class CompileTarget(NamedTuple):
    """A TVM target, its description for the metadata, and the machine its schedules are written for."""

    tvm_target: tvm.target.Target
    spec: TargetSpec
    machine: Machine


def compile_target(device: str, host: str | None = None, mcpu: str | None = None) -> CompileTarget:
    """The target of `device` on the LLVM triple `host` with the CPU `mcpu`; this machine's by default.

    Raises `ValueError` for an unknown device, triple or CPU, naming the known ones.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    native = codegen.llvm_get_system_triple()
    if host is None:
        triple, cpu = native, mcpu or codegen.llvm_get_system_cpu()
    else:
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
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    available = {str(name) for name in codegen.llvm_get_cpu_features(target)}
    features = tuple(name for name in _CHECKED_FEATURES if name in available)
    spec = TargetSpec(kind="cpu", triple=triple, mcpu=cpu, features=features)
    return CompileTarget(target, spec, _machine(triple, available))


def _machine(triple: str, features: set[str]) -> Machine:
    if triple.startswith("aarch64"):
        return Machine(lanes=4, registers=32)
    if "avx512f" in features:
        return Machine(lanes=16, registers=32)
    return Machine(lanes=8 if "avx" in features else 4, registers=16)
