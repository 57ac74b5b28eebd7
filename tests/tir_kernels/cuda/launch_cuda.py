"""Run a CUDA kernel on NumPy arrays on this machine's CPU: its generated source, compiled against emulator.h."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import tvm
import tvm_ffi
from gecko_mlc.compile import cuda_pipeline
from tvm import tirx
from tvm_ffi import structural_walk

_HEADER = Path(__file__).with_name("emulator.h")
_TARGET = {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "thread_warp_size": 32}
_CALLBACK = "tvm_callback_cuda_compile"
_OPTIONS = ("-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")
_EXTENTS = [f"{kind}Idx.{axis}" for kind in ("block", "thread") for axis in "xyz"]
# Bytes around each array: NaN, so that reading them shows, and compared afterwards.
_GUARD = 4096


def launch_cuda(kernel: tirx.PrimFunc, *arguments: np.ndarray) -> None:
    """Run a kernel; results are in the arguments. Raises `RuntimeError` saying what a GPU would not survive."""
    compiled = _compiled(kernel)
    sizes = _sizes(kernel.params, arguments)
    extents = [_evaluate(compiled.extents[tag], sizes) if tag in compiled.extents else 1 for tag in _EXTENTS]
    guarded = {f"{p.name}_ptr": _guarded(argument) for p, argument in zip(kernel.params, arguments, strict=True)}
    places = [guarded[name][1].ctypes.data for name in compiled.pointers]
    scalars = [next(value for size, value in sizes.items() if size.name == name) for name in compiled.scalars]
    message = compiled.function(
        (ctypes.c_int * 6)(*extents), (ctypes.c_void_p * len(places))(*places), (ctypes.c_int * len(scalars))(*scalars)
    )
    if message:
        raise RuntimeError(message.decode())
    for (name, (memory, inside)), argument in zip(guarded.items(), arguments, strict=True):
        argument.view(np.uint8).reshape(-1)[:] = inside
        inside[:] = 255
        if (memory != 255).any():
            raise RuntimeError(f"the kernel wrote outside of {name}")


class _Compiled(NamedTuple):
    """The kernel's entry point, its parameters' names, and its launch's extents by thread tag."""

    function: Any
    pointers: list[str]
    scalars: list[str]
    extents: dict[str, Any]


def _sizes(buffers: Any, arguments: tuple[np.ndarray, ...]) -> dict[Any, int]:
    """The symbolic extents; the arguments are what the kernel takes."""
    sizes: dict[Any, int] = {}
    for buffer, argument in zip(buffers, arguments, strict=True):
        assert argument.flags.c_contiguous and argument.flags.writeable, buffer.name
        assert argument.dtype.name == str(buffer.dtype), (buffer.name, argument.dtype, buffer.dtype)
        assert argument.ndim == len(buffer.shape), (buffer.name, argument.shape, buffer.shape)
        for expected, extent in zip(buffer.shape, argument.shape, strict=True):
            known = sizes.setdefault(expected, extent) if isinstance(expected, tirx.Var) else int(expected)
            assert known == extent, (buffer.name, argument.shape, buffer.shape)
    return sizes


def _evaluate(extent: Any, sizes: dict[Any, int]) -> int:
    analyzer = tvm.sym.Analyzer()
    for variable, value in sizes.items():
        analyzer.bind(variable, tirx.const(value, "int32"))
    return int(analyzer.simplify(extent))


def _guarded(argument: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory with a copy of the argument's bytes inside."""
    memory = np.full(argument.nbytes + 2 * _GUARD + 256, 255, np.uint8)
    first = _GUARD + -(memory.ctypes.data + _GUARD) % 256
    inside = memory[first : first + argument.nbytes]
    inside[:] = argument.view(np.uint8).reshape(-1)
    return memory, inside


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """The session's folder, with the header compiled."""
    folder = tempfile.TemporaryDirectory()
    _gcc("-x", "c++-header", str(_HEADER), "-o", f"{folder.name}/emulator.h.gch")
    return folder


def _gcc(*arguments: str) -> None:
    done = subprocess.run(["g++", *_OPTIONS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[:40]))


@functools.cache
def _compiled(kernel: tirx.PrimFunc) -> _Compiled:
    source = _on_cpu(generate(kernel))
    signature = re.search(r"kernel_kernel\((.*?)\) \{", source)
    assert signature is not None
    parameters = [p.replace("__restrict__ ", "").rsplit(" ", 1) for p in signature[1].split(", ")]
    pointers = [(kind, name) for kind, name in parameters if kind.endswith("*")]
    scalars = [name for kind, name in parameters if not kind.endswith("*")]
    values = [
        f"({kind})pointers[{pointers.index((kind, name))}]" if kind.endswith("*") else f"scalars[{scalars.index(name)}]"
        for kind, name in parameters
    ]
    extents, dynamic = _configuration(kernel)
    # Dynamic shared memory is a variable, of the launch's size.
    extern = r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];"
    if match := re.search(extern, source):
        declaration = f"EMULATOR_SHARED alignas(1024) {match[1]} {match[2]}[{dynamic} / sizeof({match[1]})];\n"
        source = declaration + re.sub(extern, r"extern \1 \2[];", source)
    source += f"""
extern "C" [[gnu::visibility("default")]] const char* launch(const int* extents, void** pointers, int* scalars) {{
  return emulator::launch(extents, [=] {{ kernel_kernel({", ".join(values)}); }});
}}
"""
    folder = Path(_folder().name)
    name = f"{len(list(folder.iterdir()))}"
    (folder / f"{name}.cc").write_text(source)
    _gcc(
        "-shared", f"-I{folder}", "-include", "emulator.h", str(folder / f"{name}.cc"), "-o", str(folder / f"{name}.so")
    )
    function = ctypes.CDLL(str(folder / f"{name}.so")).launch
    function.restype = ctypes.c_char_p
    return _Compiled(function, [name for _, name in pointers], scalars, extents)


def generate(kernel: tirx.PrimFunc) -> str:
    """The CUDA source that a library is made from; nothing compiles it here."""
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    before = tvm_ffi.get_global_func(_CALLBACK)
    tvm_ffi.register_global_func(_CALLBACK, lambda *_: b"", override=True)
    try:
        target = tvm.target.Target(_TARGET, host="llvm")
        built = tvm.compile(module, target=target, tir_pipeline=cuda_pipeline.PIPELINE)
    finally:
        tvm_ffi.register_global_func(_CALLBACK, before, override=True)
    return str(built.mod.imports[0].inspect_source())


def _configuration(kernel: tirx.PrimFunc) -> tuple[dict[str, Any], int]:
    """Extents of the launch by thread tag, and bytes of dynamic shared memory."""
    extents: dict[str, Any] = {}
    dynamic = 0

    def bind(statement: tirx.AttrStmt) -> None:
        if statement.attr_key == "thread_extent":
            extents[statement.node.thread_tag] = statement.value

    def allocate(statement: tirx.AllocBuffer) -> None:
        nonlocal dynamic
        if statement.buffer.scope() == "shared.dyn":
            bits = tvm.DataType(statement.buffer.dtype).bits
            dynamic = int(np.prod([int(extent) for extent in statement.buffer.shape])) * bits // 8

    def allocate_in_block(block: tirx.SBlock) -> None:
        for buffer in block.alloc_buffers:
            allocate(tirx.AllocBuffer(buffer))

    structural_walk(kernel.body, [(tirx.AttrStmt, bind), (tirx.AllocBuffer, allocate)], order="pre")
    return extents, dynamic


def _on_cpu(source: str) -> str:
    """CUDA source as C++: instructions are functions, and vectors are read and written where they are aligned."""
    source = re.sub(r"#include <cuda\w*\.h>", "", source)
    source = re.sub(r"\*\((\w+[24])\*\)\(", r"*emulator::aligned<\1>(", source)
    result, end = [], 0
    for match in re.finditer(r"\basm volatile\(", source):
        template, *sections = _split(source[match.end() :], ":")
        length = len(":".join([template, *sections]))
        operands = [
            operand[operand.index("(") :]
            for section in sections[:2]
            for operand in _split(section, ",")
            if operand.strip()
        ]
        result += [source[end : match.start()], *_calls("".join(re.findall(r'"(.*?)"', template)), operands)]
        end = match.end() + length + 1
    return "".join([*result, source[end:]])


def _calls(template: str, operands: list[str]) -> Iterator[str]:
    """An asm statement's instructions as calls; the statement's semicolon follows."""
    yield "(void)0"
    for instruction in filter(None, map(str.strip, template.split(";"))):
        name, _, arguments = instruction.partition(" ")
        values = re.sub(r"%(\d+)", lambda match: operands[int(match[1])], re.sub(r"[][{}]", "", arguments))
        yield f"; ptx_{re.sub(r'[^a-z0-9]', '_', name)}({values})"


def _split(text: str, separator: str) -> list[str]:
    """The parts of the text up to the bracket that closes it, split at separators outside of strings and brackets."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == separator and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts
