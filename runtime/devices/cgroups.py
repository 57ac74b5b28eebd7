"""What this process's control groups, a container's for instance, let it have: processors and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# What a memory limit that is none reads as, in version 1, is about the largest integer.
_NO_LIMIT = 1 << 60


def processors(root: Path = Path("/")) -> float | None:
    """The processors' time that the quotas leave, in processors; None without a quota."""
    quotas = []
    for folder in _folders(root, None):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quotas.append((quota, period))
    for folder in _folders(root, "cpu"):
        quotas.append((_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")))
    known = [int(quota) / int(period) for quota, period in quotas if quota.isdigit() and period.isdigit()]
    return min((number for number in known if number > 0), default=None)


def free_memory(root: Path = Path("/")) -> int | None:
    """The bytes that the memory limits leave; None without a limit. What files are cached in can be taken back."""
    free = []
    for controller, limit, used, cached in (
        (None, "memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        for folder in _folders(root, controller):
            texts = _text(folder / limit), _text(folder / used)
            if all(text.isdigit() for text in texts) and int(texts[0]) < _NO_LIMIT:
                free.append(max(0, int(texts[0]) - int(texts[1]) + _statistics(folder, cached)))
    return min(free, default=None)


def _folders(root: Path, controller: str | None) -> Iterator[Path]:
    """The folders of this process's group of a controller of version 1, or of version 2, and of all around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (controller in controllers.split(",")) if controller else not controllers:
            mounts = [mount for mount in _mounts(root) if mount[0] == controller]
            for _, inside, mounted in mounts:
                # In a container the mounted folder may be the group itself: what is outside of it is not seen.
                group = PurePosixPath(path)
                below = group.relative_to(inside) if group.is_relative_to(inside) else PurePosixPath()
                place = root / str(mounted).lstrip("/")
                yield from (place / part for part in (below, *below.parents) if ".." not in part.parts)


def _mounts(root: Path) -> Iterator[tuple[str | None, PurePosixPath, PurePosixPath]]:
    """Of every mounted hierarchy: a controller, None for version 2, the group that is mounted, and where."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        _, _, _, inside, mounted, *_ = [*fields.split(" "), *("/",) * 5]
        if kind == "cgroup2":
            yield None, PurePosixPath(inside), PurePosixPath(mounted)
        elif kind == "cgroup":
            for controller in options.split(" ")[-1].split(","):
                yield controller, PurePosixPath(inside), PurePosixPath(mounted)


def _statistics(folder: Path, names: tuple[str, ...]) -> int:
    """The sum of some of a group's statistics of memory."""
    found = (line.partition(" ") for line in _text(folder / "memory.stat").splitlines())
    return sum(int(value) for name, _, value in found if name in names and value.isdigit())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
