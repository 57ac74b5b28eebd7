"""Run a CUDA kernel on NumPy arrays without a GPU: its generated source, compiled for this CPU with emulator/."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm_ffi import WalkResult, structural_walk

from gecko_mlc.compile.backends.cuda import pipeline
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow

_EMULATOR = Path(__file__).parent / "emulator"
_TARGET = {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "thread_warp_size": 32}
_CALLBACK = "tvm_callback_cuda_compile"
_OPTIONS = ("-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")
_EXTENTS = [f"{kind}Idx.{axis}" for kind in ("block", "thread") for axis in "xyz"]
# Bytes around each array. They are NaN, which shows where they are read.
_GUARD = 4096


def launch_cuda(kernel: tirx.PrimFunc, *arguments: np.ndarray, outgoing: QuantizedRow | None = None) -> None:
    """Run a kernel; its results are in the arguments. Raises `RuntimeError` for what a GPU would not bear.

    `outgoing` says to who records launches what rows of uint32 are that it makes.
    """
    program = _program(kernel)
    buffers = program.host.params
    analyzer = _bind(program.host, arguments)
    guarded = {buffer.name: _guarded(argument) for buffer, argument in zip(buffers, arguments, strict=True)}
    for launch in _launches(program.host, analyzer):
        values = [
            guarded[value][1].ctypes.data if isinstance(value, str) else _evaluate(analyzer, value)
            for value in launch.values
        ]
        error = program.functions[launch.name](
            (ctypes.c_int * 6)(*(_evaluate(analyzer, launch.extents.get(tag, 1)) for tag in _EXTENTS)),
            (ctypes.c_int64 * len(values))(*values),
        )
        if error:
            raise RuntimeError(error.decode())
    for argument, (name, (memory, inside)) in zip(arguments, guarded.items(), strict=True):
        argument.reshape(-1).view(np.uint8)[:] = inside
        inside[:] = 255
        if (memory != 255).any():
            raise RuntimeError(f"the kernel wrote outside of {name}")


def assert_rounded(row: QuantizedRow, packed: np.ndarray, expected: np.ndarray) -> None:
    """Rows are `expected`, to a step of a vector's largest."""
    tolerance = 2e-5 + (1e-4 + 2**-15) * row.largest(expected)
    np.testing.assert_array_less(np.abs(row.unpack(packed) - expected), tolerance)
    assert row.consistent(packed)


def _bind(host: tirx.PrimFunc, arguments: tuple[np.ndarray, ...]) -> tvm.sym.Analyzer:
    """An analyzer that knows the variables of a host's function for these arguments, which have to fit."""
    sizes: dict[tirx.Var, int] = {}
    for buffer, argument in zip(host.params, arguments, strict=True):
        assert argument.flags.c_contiguous, buffer.name
        assert argument.dtype.name == buffer.dtype, (buffer.name, argument.dtype, buffer.dtype)
        for extent, size in zip(buffer.shape, argument.shape, strict=True):
            known = sizes.setdefault(extent, size) if isinstance(extent, tirx.Var) else int(extent)
            assert known == size, (buffer.name, argument.shape, buffer.shape)
    analyzer = tvm.sym.Analyzer()
    for variable, size in sizes.items():
        analyzer.bind(variable, tirx.const(size, "int32"))

    def bind(statement: tirx.Bind) -> None:
        analyzer.bind(statement.var, analyzer.simplify(statement.value))

    structural_walk(host.body, [(tirx.Bind, bind)], order="pre")
    return analyzer


def _evaluate(analyzer: tvm.sym.Analyzer, value: Any) -> int:
    return int(analyzer.simplify(value))


def _guarded(argument: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory, and the part of it that holds a copy of the argument."""
    memory = np.full(argument.nbytes + 2 * _GUARD + 256, 255, np.uint8)
    first = _GUARD + -(memory.ctypes.data + _GUARD) % 256
    inside = memory[first : first + argument.nbytes]
    inside[:] = argument.reshape(-1).view(np.uint8)
    return memory, inside


class _Launch(NamedTuple):
    """A launch of a device function: its name, a pointer among its values by the parameter's name, extents by tag."""

    name: str
    values: list[Any]
    extents: dict[str, Any]


class _Program(NamedTuple):
    """A kernel's device functions by their names, and the host's that launches them."""

    functions: dict[str, Any]
    host: tirx.PrimFunc


@functools.cache
def _program(kernel: tirx.PrimFunc) -> _Program:
    host, source = _lower(kernel)
    launches = _launches(host)
    source = _without_cuda(source)
    # Dynamic shared memory is a variable of its size, here the largest.
    dynamic = r"extern __shared__ __align__\(\d+\) ([\w ]+) (\w+)\[\];"
    size = max(int(launch.extents.get("tirx.use_dyn_shared_memory", 0)) for launch in launches)
    source = re.sub(dynamic, rf"alignas(1024) __shared__ \1 \2[{size} / sizeof(\1)];", source)
    for launch in launches:
        source += f"""
extern "C" [[gnu::visibility("default")]] const char* launch_{launch.name}(const int* extents, const int64_t* values) {{
  return emulator::launch(extents, values, {launch.name});
}}
"""
    folder = Path(_folder().name)
    file = folder / f"{len(list(folder.iterdir()))}.cc"
    file.write_text(source)
    _gcc("-shared", f"-I{folder}", "-include", "ptx.h", str(file), "-o", str(file.with_suffix(".so")))
    library = ctypes.CDLL(str(file.with_suffix(".so")))
    functions = {launch.name: library[f"launch_{launch.name}"] for launch in launches}
    for function in functions.values():
        function.restype = ctypes.c_char_p
    return _Program(functions, host)


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


def _lower(kernel: tirx.PrimFunc) -> tuple[tirx.PrimFunc, str]:
    """The host's function, and the source that is generated for a GPU, which nothing compiles."""
    hosts: list[tirx.PrimFunc] = []

    @tvm.instrument.pass_instrument
    class KeepHost:
        def run_before_pass(self, module: tvm.IRModule, info: Any) -> None:
            if info.name == "tirx.MakePackedAPI":
                hosts.append(module["kernel"])

    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    before = tvm_ffi.get_global_func(_CALLBACK)
    tvm_ffi.register_global_func(_CALLBACK, lambda *_: b"", override=True)
    try:
        with tvm.transform.PassContext(instruments=[KeepHost()]):
            target = tvm.target.Target(_TARGET, host="llvm")
            built = tvm.compile(module, target=target, tir_pipeline=pipeline.PIPELINE)
    finally:
        tvm_ffi.register_global_func(_CALLBACK, before, override=True)
    return hosts[0], built.mod.imports[0].inspect_source()


def _launches(host: tirx.PrimFunc, analyzer: tvm.sym.Analyzer | None = None) -> list[_Launch]:
    """What the host launches with the arguments that an analyzer knows; without one, with any."""
    launches: list[_Launch] = []
    sources: dict[tirx.Var, tirx.Var] = {}

    def visit(body: tirx.Stmt) -> None:
        callbacks = [(tvm.ir.Call, keep), (tirx.DeclBuffer, declare), (tirx.IfThenElse, choose)]
        structural_walk(body, callbacks, order="pre")

    def choose(branch: tirx.IfThenElse) -> WalkResult:
        if analyzer is None:
            return WalkResult.ADVANCE
        visit(branch.then_case if _evaluate(analyzer, branch.condition) else branch.else_case)
        return WalkResult.SKIP

    def keep(call: tvm.ir.Call) -> None:
        if call.op.name != "tirx.call_ffi_kernel":
            return
        # Overlapped launches are a tag without a value.
        tags = [str(tag) for tag in call.attrs.launch_params if "dependent_launch" not in str(tag)]
        values = [
            parameter(*v.args) if isinstance(v, tvm.ir.Call) and v.op.name == "tirx.buffer_data" else v
            for v in call.args[1 : -len(tags)]
        ]
        extents = dict(zip(tags, call.args[-len(tags) :], strict=True))
        launches.append(_Launch(call.args[0].value, values, extents))

    def declare(statement: tirx.DeclBuffer) -> None:
        (sources[statement.buffer],) = statement.data.args

    def parameter(buffer: tirx.Var) -> str:
        while buffer in sources:
            buffer = sources[buffer]
        return buffer.name

    visit(host.body)
    return launches


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
