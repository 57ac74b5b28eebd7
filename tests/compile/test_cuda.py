"""Libraries for NVIDIA GPUs, compiled where there is none: what is in them, and what their kernels take."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import tvm
from support.models import small_config

from gecko_mlc.cli.info import library_rows, print_plan
from gecko_mlc.compile.backends.cuda import compiler as cuda_compiler
from gecko_mlc.compile.backends.cuda import pipeline
from gecko_mlc.compile.backends.cuda.compiler import FATBIN_MAGIC, NVCC, NVRTC, MachineCode, find_compiler
from gecko_mlc.compile.backends.cuda.driver import compiling, write_stand_in
from gecko_mlc.compile.kernels import device_functions, launches_of
from gecko_mlc.compile.library import Compiled, compile_library
from gecko_mlc.compile.target import compile_target
from gecko_mlc.config import preset
from gecko_mlc.cuda_toolkit import find_library
from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.formats.plan import read_plan
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.devices import nvidia
from gecko_mlc.tir_kernels.cuda.decode import linear as decode_linear
from gecko_mlc.tir_kernels.cuda.gemv.schedule import Matrices
from gecko_mlc.tir_kernels.cuda.prefill.projections import value_projection
from gecko_mlc.tir_kernels.hardware import CUDA
from gecko_mlc.tir_kernels.shapes import Window

TARGET = compile_target("cuda", architectures="sm_80,sm_90")
# Small and odd, and the 7B model's widths.
CONFIGS = {"q0f32": small_config(), "q0bf16": preset("gecko-7b").model_copy(update={"num_layers": 2})}


class Made(NamedTuple):
    """A library and what the compiler said of it."""

    quantization: str
    path: Path
    compiled: Compiled


@pytest.fixture(scope="module", params=CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    name: str = request.param
    path = tmp_path_factory.mktemp("cuda") / f"{name}.so"
    return Made(name, path, compile_library(CONFIGS[name], quantization(name), TARGET, path))


def images(content: bytes) -> set[tuple[str, int]]:
    """The kinds and architectures of all that the fatbins in a file hold."""
    found, kinds = set(), {1: "PTX", 2: "machine code"}
    for match in re.finditer(re.escape(FATBIN_MAGIC), content):
        header, size = struct.unpack_from("<HQ", content, match.start() + 6)
        at, end = match.start() + header, match.start() + header + size
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", content, at)
            (architecture,) = struct.unpack_from("<I", content, at + 28)
            found.add((kinds[kind], architecture))
            at += header + size
    return found


EVERY_IMAGE = {("machine code", 80), ("machine code", 90), ("PTX", 80), ("PTX", 90)}


def test_the_library_holds_machine_code_and_no_source(made: Made) -> None:
    content = made.path.read_bytes()
    assert images(content) == EVERY_IMAGE
    assert b".nv.info" in content
    assert b"__global__" not in content
    assert made.compiled.metadata.target.architectures == (80, 90)
    assert made.compiled.metadata.target.ptx == (80, 90)


def test_a_decode_step_is_few_kernels(made: Made) -> None:
    layers = CONFIGS[made.quantization].num_layers
    launches, in_layer, besides = launches_of(made.compiled.kernels, "decode", layers)
    assert in_layer <= 7
    assert launches == layers * in_layer + besides
    assert besides <= 4


def test_no_kernel_spills(made: Made) -> None:
    for kernel in made.compiled.kernels:
        assert kernel.device_functions, kernel
        for function in kernel.device_functions:
            assert set(function.usage) == {80, 90}, function
            for usage in function.usage.values():
                assert usage.registers > 0
                assert usage.spill_bytes == 0, function
                assert usage.shared_bytes + function.dynamic_shared_bytes <= 163 * 1024, function


LOAD = """
import ctypes, sys
from pathlib import Path

class NoCompiler:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("tvm.relax", "tvm.s_tir", "gecko_mlc.compile", "gecko_mlc.model", "gecko_mlc.tir_kernels")):
            raise ImportError(name)

sys.meta_path.insert(0, NoCompiler())
from gecko_mlc.formats.library import Metadata, read_metadata
from gecko_mlc.runtime.players import tvm_runtime

path, driver = map(Path, sys.argv[1:])
metadata = read_metadata(path)
assert "tvm" not in sys.modules
ctypes.CDLL(str(driver), mode=ctypes.RTLD_GLOBAL)
tvm_runtime.load_cuda()
import tvm
from tvm.runtime.vm import VirtualMachine

machine = VirtualMachine(tvm.runtime.load_module(str(path)), tvm.runtime.device("cpu"))
assert Metadata.model_validate_json(str(machine["_metadata"]())) == metadata
assert "libtvm_compiler" not in open("/proc/self/maps").read()
print(metadata.model_dump_json())
"""


def test_it_loads_where_no_compiler_can(made: Made, tmp_path: Path) -> None:
    """And its metadata is read without loading it. The driver is a stand-in; nothing is launched."""
    driver = tmp_path / "libcuda.so"
    write_stand_in(driver)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(made.path), str(driver)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == made.compiled.metadata.model_dump_json()


def test_info_reads_it_anywhere(made: Made) -> None:
    rows = dict(library_rows(made.path))
    assert rows["machine code"] == "sm_80 sm_90"
    assert rows["PTX"] == "compute_80 compute_90"
    if nvidia.capability() is None:
        assert rows["runs here"].startswith("no: compiled for NVIDIA GPUs, and this machine has none")


def test_it_holds_its_launch_plan(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernels that were compiled, the workspace that was planned, and `info --plan` lists them."""
    plan, compiled = read_plan(made.path), made.compiled
    functions = [function for kernel in compiled.kernels for function in kernel.device_functions]
    assert {name: (math.prod(k.block), k.shared_bytes) for name, k in plan.kernels.items()} == {
        f.name: (f.threads, f.dynamic_shared_bytes) for f in functions
    }
    assert {name: sum(f.storages) for name, f in plan.functions.items()} == compiled.metadata.workspace_bytes
    decode = len(plan.functions["decode"].launches)
    assert decode == launches_of(compiled.kernels, "decode", CONFIGS[made.quantization].num_layers)[0]
    print_plan(made.path)
    assert f"decode(slots int32[b]), b up to 1: {decode} launches, " in capsys.readouterr().out


@pytest.mark.parametrize("made", ["q0f32"], indirect=True)
def test_the_command_line_makes_the_same_bytes(made: Made, tmp_path: Path) -> None:
    """In a process of its own; and it lists the kernels of a decode step."""
    config, output = tmp_path / "config.json", tmp_path / "again.so"
    config.write_text(CONFIGS["q0f32"].model_dump_json())
    command = [sys.executable, "-m", "gecko_mlc", "compile", str(config), "--arch", "sm_80,sm_90", "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == made.path.read_bytes()
    listed = {line.split()[0] for line in done.stdout.splitlines() if "a layer" in line}
    assert listed < {kernel.name for kernel in made.compiled.kernels if "decode" in kernel.launches}
    assert re.search(r"decode: \d+ launches, \d a layer and \d besides", done.stderr)


class SourceKeeper:
    """A compiler that keeps the source."""

    name, path = "none", ""

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        return MachineCode(source, b"", {})


def source_of(kernel: tvm.tirx.PrimFunc) -> str:
    """CUDA source as TVM generates it."""
    kernel = kernel.with_attr("global_symbol", "kernel")
    with compiling(SourceKeeper(), TARGET.spec, lambda: None) as done, TARGET.tvm_target:
        tvm.compile(tvm.IRModule({"kernel": kernel}), TARGET.tvm_target, tir_pipeline=pipeline.PIPELINE)
    return done[0].source


@pytest.fixture(scope="module")
def source() -> str:
    return source_of(decode_linear.linear_residual(64, 24, Matrices(Dense("bfloat16"), 1, CUDA((80,)))))


def test_device_functions_are_known_by_their_names() -> None:
    """Of a kernel that launches one, or two others for many rows."""
    group = quantization("q4f16_1").group
    assert group is not None
    layout = CUDA((90,)).weight_format(group)
    window = Window(8, 24, 1, 1, 8, 1, 1e-5, key_dtype="float16", value_dtype="float16")
    kernel = value_projection(64, window, layout, CUDA((90,)))
    functions = list(device_functions("kernel", kernel))
    generated = re.findall(r"__launch_bounds__\((\d+)\) (\w+)\(.*\{", source_of(kernel))
    assert [(str(f.threads), f.name) for f in functions] == generated
    assert len(generated) == 3
    assert functions[0].dynamic_shared_bytes == 0
    assert functions[1].dynamic_shared_bytes == functions[2].dynamic_shared_bytes == 192 * 1024


# NVRTC comes with the tests, nvcc with a toolkit.
@pytest.mark.parametrize("name", ["nvcc"] * (cuda_compiler._find_nvcc() is not None) + ["NVRTC"])
def test_either_compiler(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes for the same source, code for every architecture, and errors that say where."""
    if name == "NVRTC":
        monkeypatch.setattr(cuda_compiler, "_find_nvcc", lambda: None)
    compiler = find_compiler()
    assert compiler.name == name
    first, second = (compiler.compile(source, (80, 90), (80, 90)) for _ in range(2))
    assert first.fatbin == second.fatbin
    assert images(first.fatbin) == EVERY_IMAGE
    assert set(first.usage) == {("kernel_kernel", 80), ("kernel_kernel", 90)}
    line = source.count("\n") + 2
    with pytest.raises(RuntimeError, match=rf"{name} failed:\n[^\n]*kernels.cu\({line}\): error"):
        compiler.compile(f"{source}\n__device__ int x = undefined;\n", (80,), ())


def test_nvcc_without_a_cpp_compiler_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    monkeypatch.setattr(cuda_compiler, "_find_nvcc", lambda: "/opt/nvcc")
    assert isinstance(find_compiler(), NVCC)
    monkeypatch.setattr(cuda_compiler, "which", lambda name: None)
    assert isinstance(find_compiler(), NVRTC)
    monkeypatch.setattr(cuda_compiler, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"no g\+\+, which /opt/nvcc needs, and no NVRTC .* pip install"):
        find_compiler()


def test_without_any_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compiler, "_find_nvcc", lambda: None)
    monkeypatch.setattr(cuda_compiler, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"there is no nvcc and no NVRTC .* pip install \"gecko-mlc\[cuda\]\""):
        find_compiler()
    monkeypatch.setattr(cuda_compiler, "find_library", lambda name: find_library(name) if "nvrtc" in name else None)
    with pytest.raises(RuntimeError, match="no nvcc and no nvFatbin, which NVRTC needs,"):
        find_compiler()
