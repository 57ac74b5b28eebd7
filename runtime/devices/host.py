"""What this machine is: its processor's features, and how fast it reads memory."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from gecko_mlc.runtime.devices import cgroups

# Linux's names of features, where they differ from LLVM's.
_LINUX_NAMES = {
    "avx512_bf16": "avx512bf16",
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "asimd": "neon",
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
}


def cpu_features() -> frozenset[str] | None:
    """The CPU's features by LLVM's names; None where this system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(_LINUX_NAMES.get(name, name) for name in value.split())
    return None


def byte_products() -> int:
    """How many products of bytes, added up, the vector unit does at most in place of one in fp32."""
    features = cpu_features()
    # Where the system does not tell, as many as any does.
    if features is None or features & {"avx512vnni", "avxvnni", "dotprod"}:
        return 4
    # Two instructions, for sums of two products each.
    return 2 if "avx2" in features else 1


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def architecture() -> str:
    """This machine's architecture as an LLVM triple begins."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def processors() -> int:
    """The processors of this machine."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that this process may use at a time: physical ones that it may run on, as threads of one core share its
    vector unit, and no more than the quota of its control group."""
    cores, quota = _allowed_cores(), cgroups.processors()
    return cores if quota is None else min(cores, math.ceil(quota))


def describe_usable_cores() -> str:
    """Their number, and what limits it."""
    cores, quota = _allowed_cores(), cgroups.processors()
    if quota is None or math.ceil(quota) >= cores:
        return str(cores)
    return f"{usable_cores()} (of {cores}, for a quota of {quota:g})"


def _allowed_cores() -> int:
    """Physical cores this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return processors()
    allowed = os.sched_getaffinity(0)
    cores = set()
    for processor in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            return len(allowed)
    return len(cores)


def resident_bytes() -> int | None:
    """The memory this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
