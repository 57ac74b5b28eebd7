"""CUDA source to machine code: a fatbin for several architectures, by nvcc or by NVRTC, with no GPU.

Both are asked for the same: C++17, no fast math, and a report of what every kernel uses. Either gives the
same bytes for the same source.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gecko_mlc.cuda_toolkit import find_library, toolkits

FATBIN_MAGIC = b"\x50\xed\x55\xba"
_OPTIONS = ("--std=c++17", "--fmad=true", "--ptxas-options=-v")


class Usage(NamedTuple):
    """What a kernel takes on one architecture, as ptxas says: bytes, and registers of a thread."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


class MachineCode(NamedTuple):
    """A fatbin, the source it was made from, and what each kernel uses by (kernel, architecture)."""

    source: str
    fatbin: bytes
    usage: dict[tuple[str, int], Usage]


class Compiler(Protocol):
    """Something that compiles CUDA source."""

    name: str

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        """Machine code for `architectures` and PTX for `ptx`. Raises `RuntimeError` with the compiler's messages."""
        ...


def find_compiler() -> Compiler:
    """nvcc if it and the C++ compiler that it needs are here, else NVRTC.

    Raises `RuntimeError` naming both when neither is there.
    """
    if (nvcc := _find_nvcc()) is not None and (os.environ.get("NVCC_CCBIN") or shutil.which("g++")):
        return NVCC(nvcc)
    if (nvrtc := find_library("libnvrtc.so.13")) is not None:
        return NVRTC(nvrtc, find_library("libnvfatbin.so.13"))
    missing = "nvcc is there, but g++, which it needs, is not" if nvcc is not None else "there is no nvcc"
    raise RuntimeError(
        f"nothing to compile CUDA with: {missing} (looked at $CUDA_HOME, $CUDA_PATH, $PATH and PyPI's packages),"
        ' and no NVRTC of CUDA 13; install one, for example with pip install "gecko-mlc[cuda]"'
    )


def _find_nvcc() -> str | None:
    explicit = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    paths = [Path(folder) / "bin" / "nvcc" for folder in explicit]
    if on_path := shutil.which("nvcc"):
        paths.append(Path(on_path))
    paths += [folder / "bin" / "nvcc" for folder in toolkits()]
    return next((str(path) for path in paths if path.is_file()), None)


def real_architecture(architecture: int) -> str:
    """What follows `sm_`: 9.0 with the instructions that only it has (wgmma)."""
    return "90a" if architecture == 90 else str(architecture)


class NVCC:
    """NVIDIA's compiler driver."""

    def __init__(self, path: str) -> None:
        self.name, self._path = "nvcc", path

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        """See `Compiler`."""
        targets = []
        for a in architectures:
            real = real_architecture(a)
            code = f"[sm_{real},compute_{a}]" if a in ptx and real == str(a) else f"sm_{real}"
            targets += ["-gencode", f"arch=compute_{real},code={code}"]
        for a in ptx:
            if real_architecture(a) != str(a) or a not in architectures:
                targets += ["-gencode", f"arch=compute_{a},code=compute_{a}"]
        with tempfile.TemporaryDirectory() as folder:
            # Relative names, for what ends up in the output.
            (Path(folder) / "kernels.cu").write_text(source)
            command = [self._path, "-fatbin", "-O3", *_OPTIONS, *targets, "--threads=0", "--frandom-seed=0"]
            done = subprocess.run(
                [*command, "-o", "kernels.fatbin", "kernels.cu"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{self._path} failed:\n{_errors(done.stdout)}")
            return MachineCode(source, (Path(folder) / "kernels.fatbin").read_bytes(), parse_usage(done.stdout))


class NVRTC:
    """The compiler as a library; several architectures are put together by nvFatbin."""

    def __init__(self, nvrtc: str, nvfatbin: str | None) -> None:
        self.name, self._nvrtc, self._nvfatbin = "NVRTC", ctypes.CDLL(nvrtc), nvfatbin

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        """See `Compiler`."""
        if self._nvfatbin is None:
            raise RuntimeError("NVRTC is there, but not what joins its output: pip install nvidia-nvfatbin")
        jobs = [("CUBIN", real_architecture(a)) for a in architectures] + [("PTX", str(a)) for a in ptx]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda job: self._program(source, *job), jobs))
        usage: dict[tuple[str, int], Usage] = {}
        for _, log in results:
            usage.update(parse_usage(log))
        images = [(kind, arch, image) for (kind, arch), (image, _) in zip(jobs, results, strict=True)]
        return MachineCode(source, _fatbin(ctypes.CDLL(self._nvfatbin), images), usage)

    def _program(self, source: str, kind: str, architecture: str) -> tuple[bytes, str]:
        """The cubin or PTX of `source`, and the log."""
        library, program = self._nvrtc, ctypes.c_void_p()
        prefix = "sm" if kind == "CUBIN" else "compute"
        includes = [f"-I{path}" for path in _include_folders()]
        options = [o.encode() for o in (f"--gpu-architecture={prefix}_{architecture}", *_OPTIONS, *includes)]
        # What NVRTC has built in, or has no use for.
        text = source.replace("#include <cuda.h>", "").encode()
        _check(library.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None), "NVRTC")
        try:
            status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            log = _output(library, "nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0")
            if status:
                raise RuntimeError(f"NVRTC failed:\n{_errors(log)}")
            return _output(library, f"nvrtcGet{kind}", program), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))


def _include_folders() -> list[Path]:
    found = next((f / "include" for f in toolkits() if (f / "include" / "cuda_fp16.h").is_file()), None)
    if found is None:
        raise RuntimeError("NVRTC is there, but not CUDA's headers: pip install nvidia-cuda-runtime nvidia-cuda-cccl")
    return [found, found / "cccl"]


def _output(library: Any, getter: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"{getter}Size")(program, ctypes.byref(size)), getter)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, getter)(program, buffer), getter)
    return buffer.raw


def _fatbin(library: Any, images: Iterable[tuple[str, str, bytes]]) -> bytes:
    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 1)(b"-64")
    _check(library.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(1)), "nvFatbin")
    try:
        for kind, architecture, image in images:
            arguments = [handle, image, ctypes.c_size_t(len(image)), architecture.encode(), b"kernels"]
            if kind == "PTX":
                _check(library.nvFatbinAddPTX(*arguments, None), "nvFatbin")
            else:
                _check(library.nvFatbinAddCubin(*arguments), "nvFatbin")
        size = ctypes.c_size_t()
        _check(library.nvFatbinSize(handle, ctypes.byref(size)), "nvFatbin")
        buffer = ctypes.create_string_buffer(size.value)
        _check(library.nvFatbinGet(handle, buffer), "nvFatbin")
        return buffer.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} failed with status {status}")


def _errors(log: str) -> str:
    """The lines of a log that say what is wrong, without the report of what compiled."""
    lines = [line for line in log.splitlines() if "ptxas info" not in line and "bytes stack frame" not in line]
    return "\n".join(lines[:40])


def parse_usage(log: str) -> dict[tuple[str, int], Usage]:
    """What `ptxas -v` reports, by (kernel, architecture)."""
    usage = {}
    kernel, architecture, stack, spills = "", 0, 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'", line):
            kernel, architecture, stack, spills = match[1], int(match[2]), 0, 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            usage[kernel, architecture] = Usage(int(match[1]), int(shared[1]) if shared else 0, stack, spills)
    return usage
