"""What control groups let a process have: versions 1 and 2, its own group and all around it, within containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gecko_mlc.runtime.devices import cgroups, host

V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw"
V1 = (
    "31 20 0:27 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 20 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("", "", {}, None),
        ("0::/", V2, {}, None),
        ("0::/", V2, {"cpu.max": "max 100000"}, None),
        ("0::/", V2, {"cpu.max": "200000 100000"}, 2),
        ("0::/a/b", V2, {"a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", V2, {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/../other", V2, {"cpu.max": "200000 100000"}, 2),
        ("0::/a", V2, {"a/cpu.max": "what"}, None),
        ("3:cpu,cpuacct:/a", V1.format(root="/"), {"cpu/a/cpu.cfs_quota_us": "-1"}, None),
        (
            "3:cpu,cpuacct:/a/b",
            V1.format(root="/"),
            {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (  # A container that sees its own group as the root.
            "3:cpu,cpuacct:/docker/1f",
            V1.format(root="/docker/1f"),
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("1:name=systemd:/\n3:cpu:/\n0::/", f"{V2}\n{V1.format(root='/')}", {"cpu.max": "100000 100000"}, 1),
    ],
)
def test_quotas(groups: str, mounts: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert cgroups.processors(machine(tmp_path, groups, mounts, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 64), (2.0, 2), (0.5, 1), (1.5, 2), (100.0, 64)])
def test_a_quota_limits_the_usable_cores(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_allowed_cores", lambda: 64)
    monkeypatch.setattr(cgroups, "processors", lambda: quota)
    assert host.usable_cores() == expected
    assert host.describe_usable_cores().split()[0] == str(expected)
    assert ("quota" in host.describe_usable_cores()) == (expected < 64)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/", V2, {"memory.max": "max", "memory.current": "5"}, None),
        ("0::/a", V2, {"a/memory.max": "1000", "a/memory.current": "400"}, 600),
        (
            "0::/a",
            V2,
            {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 300"},
            400,
        ),
        ("0::/a", V2, {"a/memory.max": "1000", "a/memory.current": "1100"}, 0),
        (
            "4:memory:/a/b",
            V1.format(root="/"),
            {
                "memory/a/memory.limit_in_bytes": "1000",
                "memory/a/memory.usage_in_bytes": "100",
                "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
                "memory/a/b/memory.usage_in_bytes": "100",
            },
            900,
        ),
    ],
)
def test_memory(groups: str, mounts: str, files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert cgroups.free_memory(machine(tmp_path, groups, mounts, files)) == expected
