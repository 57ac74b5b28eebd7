"""CUDA source to machine code: a fatbin for several architectures, by nvcc or by NVRTC, with no GPU.

Both are asked for the same: C++17, no fast math, and a report of what every kernel uses. Either gives the
same bytes for the same source.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from gecko_mlc.compile.backends.cuda import nvrtc
from gecko_mlc.compile.kernels import Usage
from gecko_mlc.cuda_toolkit import find_library, toolkits
from gecko_mlc.search_path import environment, which

FATBIN_MAGIC = b"\x50\xed\x55\xba"
_OPTIONS = ("--std=c++17", "--fmad=true", "--disable-warnings", "--ptxas-options=-v")
_INSTALL = 'install NVRTC with pip install "gecko-mlc[cuda]", or a toolkit of CUDA 13'


class MachineCode(NamedTuple):
    """A fatbin, the source it was made from, and what each kernel uses by (kernel, architecture)."""

    source: str
    fatbin: bytes
    usage: dict[tuple[str, int], Usage]


class Compiler(Protocol):
    """Something that compiles CUDA source."""

    name: str
    path: str

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        """Machine code for `architectures` and PTX for `ptx`. Raises `RuntimeError` with the compiler's messages."""
        ...


def find_compiler() -> Compiler:
    """nvcc if it and the C++ compiler that it needs are here, else NVRTC.

    Raises `RuntimeError` naming both when neither is there.
    """
    if (nvcc := _find_nvcc()) is not None and (os.environ.get("NVCC_CCBIN") or which("g++")):
        return NVCC(nvcc)
    libraries = [find_library(name) for name in ("libnvrtc.so.13", "libnvfatbin.so.13")]
    if libraries[0] is not None and libraries[1] is not None:
        return NVRTC(libraries[0], libraries[1])
    reason = "no nvcc" if nvcc is None else f"no g++, which {nvcc} needs,"
    missing = "no NVRTC" if libraries[0] is None else "no nvFatbin, which NVRTC needs,"
    raise RuntimeError(
        f"nothing to compile CUDA with: there is {reason} and {missing} of CUDA 13"
        f" (in $CUDA_HOME, $CUDA_PATH, $PATH, /usr/local/cuda and PyPI's packages); {_INSTALL}"
    )


def _find_nvcc() -> str | None:
    explicit = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    paths = [Path(folder) / "bin" / "nvcc" for folder in explicit]
    if on_path := which("nvcc"):
        paths.append(Path(on_path))
    paths += [folder / "bin" / "nvcc" for folder in toolkits()]
    return next((str(path) for path in paths if path.is_file()), None)


def real_architecture(architecture: int) -> str:
    """What follows `sm_`: 9.0 with the instructions that only it has (wgmma)."""
    return "90a" if architecture == 90 else str(architecture)


class NVCC:
    """NVIDIA's compiler driver."""

    def __init__(self, path: str) -> None:
        self.name, self.path = "nvcc", path

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
            command = [self.path, "-fatbin", "-O3", *_OPTIONS, *targets, "--threads=0", "--frandom-seed=0"]
            done = subprocess.run(
                [*command, "-o", "kernels.fatbin", "kernels.cu"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(),
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{self.path} failed:\n{_errors(done.stdout)}")
            return MachineCode(source, (Path(folder) / "kernels.fatbin").read_bytes(), parse_usage(done.stdout))


class NVRTC:
    """The compiler as a library; several architectures are put together by nvFatbin."""

    def __init__(self, path: str, nvfatbin: str) -> None:
        self.name, self.path, self._nvfatbin = "NVRTC", path, nvfatbin

    def compile(self, source: str, architectures: Sequence[int], ptx: Sequence[int]) -> MachineCode:
        """See `Compiler`."""
        real = [real_architecture(a) for a in architectures]
        # Machine code comes with PTX, but not with PTX for later GPUs where it has instructions of its own.
        virtual = [str(a) for a in ptx if str(a) not in real]
        names = [f"sm_{a}" for a in real] + [f"compute_{a}" for a in virtual]
        includes = [f"-I{folder}" for folder in _include_folders(self.path)]

        def compile_for(name: str) -> nvrtc.Program:
            return nvrtc.compile_program(self.path, source, [f"--gpu-architecture={name}", *_OPTIONS, *includes])

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                programs = dict(zip([*real, *virtual], pool.map(compile_for, names), strict=True))
        except RuntimeError as error:
            raise RuntimeError(f"NVRTC failed:\n{_errors(str(error))}") from None
        images = [("CUBIN", a, programs[a].cubin) for a in real] + [("PTX", str(a), programs[str(a)].ptx) for a in ptx]
        usage: dict[tuple[str, int], Usage] = {}
        for program in programs.values():
            usage.update(parse_usage(program.log))
        return MachineCode(source, nvrtc.join(self._nvfatbin, images), usage)


def _include_folders(library: str) -> list[Path]:
    """CUDA's headers, those beside the library first: they are of its version."""
    folders = [folder / "include" for folder in [Path(library).parent.parent, *toolkits()]]
    found = next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)
    if found is None:
        raise RuntimeError(f"NVRTC is there, but not CUDA's headers: {_INSTALL}")
    return [found, found / "cccl"]


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
