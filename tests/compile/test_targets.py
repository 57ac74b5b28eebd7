"""Targets, cross-compilation and linking."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from support.models import small_config

from gecko_mlc.compile import link
from gecko_mlc.compile.hosts import host_triple
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.target import compile_target
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import CUDATarget
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.library import Library
from gecko_mlc.tir_kernels.hardware import CPU, ByteDot


@pytest.mark.parametrize(
    ("host", "mcpu", "machine", "features"),
    [
        ("x86_64-linux-gnu", None, CPU(8, 16, ByteDot.PAIRS), {"avx2", "fma", "f16c"}),
        ("x86_64-linux-gnu", "alderlake", CPU(8, 16, ByteDot.VNNI), {"avx2", "avxvnni"}),
        ("x86_64-linux-gnu", "skylake-avx512", CPU(16, 32, ByteDot.PAIRS), {"avx512f", "avx512vl"}),
        ("x86_64-linux-gnu", "znver4", CPU(16, 32, ByteDot.VNNI), {"avx512vnni"}),
        ("x86_64-linux-gnu", "sandybridge", CPU(8, 16), {"avx"}),
        ("x86_64-linux-gnu", "x86-64", CPU(4, 16), set()),
        ("aarch64-linux-gnu", "cortex-a76", CPU(4, 32, ByteDot.NEON), {"neon", "dotprod"}),
        ("aarch64-linux-gnu", "cortex-a72", CPU(4, 32), {"neon"}),
    ],
)
def test_features_follow_the_cpu(host: str, mcpu: str | None, machine: CPU, features: set[str]) -> None:
    target = compile_target("cpu", host, mcpu)
    assert target.hardware == machine
    assert features <= set(target.spec.features)
    assert ("avx512f" in target.spec.features) == (machine.lanes == 16)


@pytest.mark.parametrize(
    ("host", "triple"),
    [
        ("linux-x86_64", "x86_64-linux-gnu"),
        ("linux-aarch64", "aarch64-linux-gnu"),
        ("linux-arm64", "aarch64-linux-gnu"),
        ("arm64-linux-gnu", "aarch64-linux-gnu"),
        ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu"),
        ("x86_64-pc-linux-gnu", "x86_64-linux-gnu"),
        ("amd64-linux", "x86_64-linux-gnu"),
        ("aarch64-linux-musl", "aarch64-linux-musl"),
    ],
)
def test_a_host_has_many_names(host: str, triple: str) -> None:
    assert host_triple(host) == triple
    assert host_triple(triple) == triple


@pytest.mark.parametrize(
    "host",
    [
        "aarch64-linux-android",
        "aarch64-apple-ios",
        "x86_64-pc-windows-msvc",
        "arm64-apple-darwin",
        "riscv64-linux-gnu",
        "macos-arm64",
        "windows-x86_64",
        "android-arm64",
        "ios-arm64",
        "linux",
        "x86_64",
        "aarch64_be-linux-gnu",
        "x86_64-linux-gnux32",
        "-",
    ],
)
def test_a_host_that_nothing_is_linked_for_is_refused_with_those_that_are(host: str) -> None:
    with pytest.raises(
        ValueError, match=rf"--host '{host}': not supported; expected linux-x86_64 or linux-aarch64, or"
    ):
        host_triple(host)


@pytest.mark.parametrize(
    ("device", "host", "mcpu", "message"),
    [
        ("cpu", "m68k-linux-gnu", None, "--host 'm68k-linux-gnu': not supported; expected linux-x86_64 or"),
        ("cpu", "aarch64-linux-gnu", "znver4", "unknown CPU 'znver4' for aarch64-linux-gnu"),
    ],
)
def test_unknown_machines_are_refused(device: str, host: str | None, mcpu: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_target(device, host, mcpu)


@pytest.mark.parametrize(("host", "machine"), [("aarch64-linux-gnu", 183), ("x86_64-linux-gnu", 62)])
def test_cross_compilation(host: str, machine: int, tmp_path: Path) -> None:
    """A library for another CPU: of its machine code, and refused here before any kernel runs."""
    path = tmp_path / "lib.so"
    compile_library(small_config(num_layers=1), quantization("q0f16"), compile_target("cpu", host), path)
    assert struct.unpack_from("<H", path.read_bytes(), 18) == (machine,)
    assert list(tmp_path.iterdir()) == [path]
    if machine == 183 and compile_target("cpu").spec.triple.startswith("x86_64"):
        with pytest.raises(GeckoError, match="compiled for aarch64, this machine is x86_64"):
            Library(path)


@pytest.mark.parametrize(
    ("options", "kind", "architectures", "ptx"),
    [
        ({"device": "cuda", "architectures": "sm_120, sm_80,sm_90,sm_90"}, "cuda", (80, 90, 120), (80, 120)),
        ({"device": "auto", "architectures": "sm_89"}, "cuda", (89,), (89,)),
        ({"device": "cuda", "architectures": "auto", "installed": {"cuda": 90}}, "cuda", (90,), (90,)),
        ({"device": "auto", "installed": {"cuda": 103}}, "cuda", (100,), (100,)),
        ({"device": "auto", "installed": {"cuda": 87}}, "cuda", (87,), (87,)),
        ({"device": "auto", "installed": {"cuda": 88}}, "cuda", (86,), (86,)),
        ({"device": "auto", "installed": {"cuda": 75}}, "cpu", (), ()),
        ({"device": "auto"}, "cpu", (), ()),
        ({"device": "auto", "host": "aarch64-linux-gnu", "installed": {"cuda": 90}}, "cpu", (), ()),
    ],
)
def test_which_gpus(options: dict[str, Any], kind: str, architectures: tuple[int, ...], ptx: tuple[int, ...]) -> None:
    target = compile_target(**options)
    assert target.spec.kind == kind
    if isinstance(target.spec, CUDATarget):
        assert (target.spec.architectures, target.spec.ptx) == (architectures, ptx)
        # The host's code is for most CPUs: the library goes to another machine.
        assert target.spec.mcpu in ("x86-64-v3", "generic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "as there is no GPU here; one or several of sm_80"),
        ({"device": "auto", "architectures": "auto"}, "as there is no GPU here"),
        ({"device": "cuda", "installed": {"cuda": 75}}, "as this machine's GPU is sm_75"),
        ({"device": "cuda", "architectures": "sm_80,90"}, "unknown architecture '90'"),
        ({"device": "cpu", "architectures": "sm_80"}, "--arch 'sm_80' is not for --device cpu"),
    ],
)
def test_gpus_nothing_is_compiled_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_target(**options)


def test_nothing_to_link_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(link, "which", lambda name: None)
    monkeypatch.setattr(link, "package_folders", lambda name: [])
    with pytest.raises(RuntimeError, match=r"a C compiler \(gcc or clang\), or Zig \(pip install ziglang\)"):
        link.linker(compile_target("cpu").spec.triple)


def test_a_failed_link_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="could not link"):
        compile_library(small_config(num_layers=1), quantization("q0f32"), compile_target("cpu"), tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown suffix '\.exe'; expected \.so"):
        compile_library(small_config(), quantization("q0f32"), compile_target("cpu"), tmp_path / "lib.exe")
