"""How much memory of the host this process may still take."""

from __future__ import annotations

from pathlib import Path

from gecko_mlc.runtime.devices import cgroups


def free_memory() -> int | None:
    """Bytes that this machine has, its control group lets the process take, and its own limits; None where none of
    them is known. Memory may be written out to the swap space, and what files are cached in can be taken back."""
    swap = _kilobytes("/proc/meminfo", "SwapFree:") or 0
    available, group = _kilobytes("/proc/meminfo", "MemAvailable:"), cgroups.free_memory()
    soft = [free + swap for free in (available, group) if free is not None]
    return min([*soft, *_within_limits()], default=None)


def _within_limits() -> list[int]:
    """What the limits of the process, `ulimit`'s, leave."""
    try:
        import resource
    except ImportError:
        return []
    free = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most, taken = resource.getrlimit(limit)[0], _kilobytes("/proc/self/status", used)
        if most != resource.RLIM_INFINITY and taken is not None:
            free.append(max(0, most - taken))
    return free


def _kilobytes(path: str, name: str) -> int | None:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
