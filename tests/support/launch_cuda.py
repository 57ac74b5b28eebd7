"""CUDA kernels without a GPU: their generated source, compiled for this CPU with emulator/, plays launch plans."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from gecko_mlc.compile.backends.cuda import pipeline
from gecko_mlc.compile.plan import host_launches, keep_split, kernel_of, requirements
from gecko_mlc.formats.plan import Argument, Buffer, Function, Plan
from gecko_mlc.formats.versions import PLAN_VERSION
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow
from support.play import Player, Program

_EMULATOR = Path(__file__).parent / "emulator"
_TARGET = {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "thread_warp_size": 32}
_CALLBACK = "tvm_callback_cuda_compile"
_OPTIONS = ("-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")


def launch_cuda(kernel: tirx.PrimFunc, *arguments: np.ndarray, outgoing: QuantizedRow | None = None) -> None:
    """Run a kernel; its results are in the arguments. Raises `RuntimeError` for what a GPU would not bear.

    `outgoing` says to who records launches what rows of uint32 are that it makes.
    """
    kernels = _kernels_of(kernel)
    Player(kernels.plan_of_one(arguments), kernels.program).play("kernel", arguments)


def assert_rounded(row: QuantizedRow, packed: np.ndarray, expected: np.ndarray) -> None:
    """Rows are `expected`, to a step of a vector's largest."""
    tolerance = 2e-5 + (1e-4 + 2**-15) * row.largest(expected)
    np.testing.assert_array_less(np.abs(row.unpack(packed) - expected), tolerance)
    assert row.consistent(packed)


class Kernels:
    """Kernels split as the pipeline does it, and their device functions as programs of this CPU."""

    def __init__(self, kernels: tvm.IRModule) -> None:
        passes, _, self._finalize = tirx.get_tir_pipeline(pipeline.PIPELINE)
        target = tvm.target.Target(_TARGET, host="llvm")
        with keep_split() as kept:
            self._lowered = passes(tirx.transform.BindTarget(target)(kernels))
        # Functions of the host and of the device.
        (self.split,) = kept
        self._programs: dict[str, Program] = {}

    def program(self, name: str) -> Program:
        """A device function, compiled when it is first asked for."""
        if name not in self._programs:
            source = re.sub(rf"\b{name}\b", "kernel", self._source(name))
            # Dynamic shared memory is a variable of its size.
            dynamic = r"extern __shared__ __align__\(\d+\) ([\w ]+) (\w+)\[\];"
            size = kernel_of(self.split[name]).shared_bytes
            source = re.sub(dynamic, rf"alignas(1024) __shared__ \1 \2[{size} / sizeof(\1)];", source)
            self._programs[name] = _compiled(source)
        return self._programs[name]

    def _source(self, name: str) -> str:
        """The source that is generated for a GPU, which nothing compiles."""
        before = tvm_ffi.get_global_func(_CALLBACK)
        tvm_ffi.register_global_func(_CALLBACK, lambda *_: b"", override=True)
        try:
            device = self._finalize()(tvm.IRModule({name: self._lowered[name]}))
            built = tvm_ffi.get_global_func("target.build.cuda")(device, tvm.target.Target(_TARGET))
        finally:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)
        return str(built.inspect_source())

    def plan_of_one(self, arguments: tuple[np.ndarray, ...]) -> Plan:
        """The plan of the only kernel, called with these arguments, which have to fit."""
        host, buffers, extents = self.split["kernel"], [], {}
        for i, (parameter, argument) in enumerate(zip(host.params, arguments, strict=True)):
            assert argument.dtype.name == parameter.dtype, (parameter.name, argument.dtype, parameter.dtype)
            for extent, size in zip(parameter.shape, argument.shape, strict=True):
                known = extents.setdefault(extent, size) if isinstance(extent, tirx.Var) else int(extent)
                assert known == size, (parameter.name, argument.shape, parameter.shape)
            buffers.append(Buffer(role="argument", index=i, dtype=argument.dtype.name, shape=argument.shape))
        launches = tuple(host_launches(host, extents, range(len(buffers))))
        kernels = {launch.kernel: kernel_of(self.split[launch.kernel]) for launch in launches}
        for launch in launches:
            for i, access in zip(launch.buffers, kernels[launch.kernel].buffers, strict=True):
                if access != "read":
                    buffers[i] = buffers[i].model_copy(update={"role": "result"})
        inputs = tuple(
            Argument(role=b.role, name=p.name, dtype=b.dtype, shape=b.shape)
            for p, b in zip(host.params, buffers, strict=True)
        )
        return Plan(
            plan_version=PLAN_VERSION,
            target="cuda",
            requires=requirements(80, kernels, self.split),
            bounds={},
            parameters=(),
            state=(),
            kernels=kernels,
            functions={"kernel": Function(arguments=inputs, storages=(), buffers=buffers, launches=launches)},
        )


@functools.cache
def _kernels_of(kernel: tirx.PrimFunc) -> Kernels:
    return Kernels(tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}))


@functools.cache
def _compiled(source: str) -> Program:
    """The function `kernel` of CUDA source: the same source is compiled once."""
    folder = Path(_folder().name)
    file = folder / f"{len(list(folder.iterdir()))}.cc"
    file.write_text(f"""{_without_cuda(source)}
extern "C" [[gnu::visibility("default")]] const char* launch(const int* extents, const int64_t* values) {{
  return emulator::launch(extents, values, kernel);
}}
""")
    _gcc("-shared", f"-I{folder}", "-include", "ptx.h", str(file), "-o", str(file.with_suffix(".so")))
    program = ctypes.CDLL(str(file.with_suffix(".so"))).launch
    program.restype = ctypes.c_char_p
    return program


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """The process's programs, and the compiled headers of them all."""
    folder = tempfile.TemporaryDirectory()
    _gcc("-x", "c++-header", str(_EMULATOR / "ptx.h"), "-o", f"{folder.name}/ptx.h.gch")
    return folder


def _gcc(*arguments: str) -> None:
    done = subprocess.run(["g++", *_OPTIONS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[:40]))


def _without_cuda(source: str) -> str:
    """The source for the emulator: PTX instructions are calls of functions, and vectors are aligned or an error."""
    source = re.sub(r"#include <(cuda\w*|math_constants)\.h>", "", source)
    source = re.sub(r"\*\((\w+[24])\*\)\(", r"*emulator::aligned<\1>(", source)
    parts, end = [], 0
    for match in re.finditer(r"\basm volatile\(", source):
        parts.append(source[end : match.start()])
        template, *rest = _split(source[match.end() :], ":")
        end = match.end() + len(":".join([template, *rest]))
        operands = [o[o.index("(") :] for section in rest[:2] for o in _split(section, ",") if o.strip()]
        instructions = "".join(re.findall(r'"(.*?)"', template)).split(";")
        parts.append(", ".join(["(void(0)", *(_call(i.strip(), operands) for i in instructions if i.strip())]))
    return "".join([*parts, source[end:]])


def _call(instruction: str, operands: list[str]) -> str:
    name, _, arguments = re.sub(r"[][{}]", "", instruction).partition(" ")
    values = re.sub(r"%(\d+)", lambda match: operands[int(match[1])], arguments)
    return f"ptx_{re.sub(r'[^A-Za-z0-9]', '_', name)}({values})"


def _split(text: str, separator: str) -> list[str]:
    """The parts of the text before the bracket that closes it, split at separators outside of brackets and strings."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == separator and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts
