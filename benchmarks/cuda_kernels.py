"""Every CUDA kernel against its oracle, on the GPU: the launches of the kernels' tests, made again there.

Those tests execute the generated source on a CPU and compare with oracles. Here each of their launches is recorded,
arrays before and after, and its kernel compiled. It covers what a CPU cannot execute: instructions that replace others.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.quantized.activations import LARGEST, QuantizedRow

# Bytes of a launch's arrays: what is recorded may have to travel.
LARGEST_LAUNCH = 2 * 10**6
# What the CPU's and the GPU's fp32 arithmetic may differ by, of the largest number.
FP32_TOLERANCE = 2e-5


def prepare_kernels(tests: Path, arch: str | None, folder: Path) -> None:
    """Run the tests, which must pass; write launches.json, launches.npz and libraries of the kernels."""
    import pytest

    sys.path[:0] = [str(tests)]
    from support import launch_cuda

    recorder = Recorder(launch_cuda.launch_cuda)
    launch_cuda.launch_cuda = recorder
    files = sorted((tests / "tir_kernels" / "cuda").rglob("test_*.py"))
    # A plain plugin sees which test is running.
    options = ["-q", "-p", "no:cacheprovider"]
    if status := pytest.main([*map(str, files), *options], plugins=[recorder]):
        raise RuntimeError(f"the kernels' tests did not pass: {status}")
    libraries = compile_kernels(recorder.kernels, arch, folder)
    launches, arrays = recorder.recorded()
    rows = [{**row, "library": libraries[row["kernel"]]} for row in launches]
    (folder / "launches.json").write_text(json.dumps(rows))
    np.savez_compressed(folder / "launches.npz", **arrays)


class Recorder:
    """Stands in for `launch_cuda`; keeps a test's first and last launch of a kernel, unless they are too large."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch, self._test = launch, ""
        self._launches: dict[tuple[str, str], list[tuple[list[np.ndarray], ...]]] = defaultdict(list)
        self._outgoing: dict[str, dict[str, Any]] = {}
        self.kernels: dict[str, Any] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        """Pytest's hook."""
        self._test = item.nodeid.split("/")[-1]

    def __call__(self, kernel: Any, *arguments: np.ndarray, outgoing: Any = None) -> None:
        before = [argument.copy() for argument in arguments]
        self._launch(kernel, *arguments)
        if sum(array.nbytes for array in before) > LARGEST_LAUNCH:
            return
        name = next((n for n, known in self.kernels.items() if known is kernel), f"kernel{len(self.kernels)}")
        self.kernels[name] = kernel
        if outgoing is not None:
            self._outgoing[name] = {**outgoing._asdict(), "layout": outgoing.layout.model_dump()}
        launches = self._launches[self._test, name]
        launches[1:] = [(before, [argument.copy() for argument in arguments])]

    def recorded(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """The launches, and their arrays' bytes by the names that they have there; equal ones are kept once."""
        arrays: dict[str, np.ndarray] = {}

        def keep(array: np.ndarray) -> str:
            raw = array.reshape(-1).view(np.uint8)
            name = hashlib.sha256(raw.data).hexdigest()[:16]
            arrays.setdefault(name, raw)
            return name

        rows = []
        for (test, kernel), launches in self._launches.items():
            for pairs in launches:
                arguments = [
                    {"dtype": before.dtype.name, "shape": before.shape, "before": keep(before), "after": keep(after)}
                    for before, after in zip(*pairs, strict=True)
                ]
                outgoing = self._outgoing.get(kernel)
                rows.append({"test": test, "kernel": kernel, "arguments": arguments, "outgoing": outgoing})
        return rows, arrays


def compile_kernels(kernels: dict[str, Any], arch: str | None, folder: Path) -> dict[str, str]:
    """Write libraries in which each kernel is called by its name; the name of each one's library."""
    import tvm

    from gecko_mlc.compile.backends.cuda.backend import compiling
    from gecko_mlc.compile.backends.cuda.compiler import find_compiler
    from gecko_mlc.compile.backends.cuda.pipeline import PIPELINE
    from gecko_mlc.compile.link import linker
    from gecko_mlc.compile.target import compile_target

    target = compile_target("cuda", architectures=arch)
    # CUDA C++ knows a name of dynamic shared memory by one type only.
    libraries: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, kernel in kernels.items():
        libraries[f"kernels-{_shared_memory_type(kernel)}.so"][name] = kernel.with_attr("global_symbol", name)
    for file, module in libraries.items():
        with compiling(find_compiler(), target, lambda: None), target.tvm_target:
            built = tvm.compile(tvm.IRModule(module), target=target.tvm_target, tir_pipeline=PIPELINE)
        with tempfile.TemporaryDirectory() as temporary:
            link = linker(target.spec.triple)
            built.export_library(str(folder / file), fcompile=link, workspace_dir=temporary)
    return {name: file for file, module in libraries.items() for name in module}


def _shared_memory_type(kernel: Any) -> str:
    """The dtype of a kernel's dynamic shared memory, of which it has at most one buffer."""
    from tvm import tirx
    from tvm_ffi import structural_walk

    dtype = "none"

    def allocate(statement: tirx.AllocBuffer) -> None:
        nonlocal dtype
        if statement.buffer.scope() == "shared.dyn":
            dtype = str(statement.buffer.dtype)

    structural_walk(kernel.body, [(tirx.AllocBuffer, allocate)], order="pre")
    return dtype


def kernels(folder: Path) -> dict[str, Any]:
    """Launches in all, and by test the largest error as a part of what is tolerated. Failures are launches whose error
    exceeds that, or that did not end; a GPU that is lost fails all that follow."""
    from gecko_mlc.runtime.players import tvm_runtime

    tvm = tvm_runtime.load()
    tvm_runtime.load_cuda()
    libraries = {path.name: tvm.runtime.load_module(str(path)) for path in folder.glob("kernels-*.so")}
    device = tvm.runtime.device("cuda", 0)
    arrays = np.load(folder / "launches.npz")
    launches = json.loads((folder / "launches.json").read_text())

    def launch(row: dict[str, Any], values: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tvm.runtime.empty(value.shape, value.dtype.name, device) for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copyfrom(value)
        libraries[row["library"]][row["kernel"]](*tensors)
        device.sync()
        return [tensor.numpy() for tensor in tensors]

    return replay(launches, arrays, launch)


def replay(
    launches: list[dict[str, Any]],
    arrays: Any,
    launch: Callable[[dict[str, Any], list[np.ndarray]], list[np.ndarray]],
) -> dict[str, Any]:
    """See `kernels`; `launch` gives the arrays after a recorded launch was made on some."""
    worst: dict[str, float] = {}
    failures = []
    for row in launches:
        before, after = (
            [arrays[a[key]].view(np.dtype(a["dtype"])).reshape(a["shape"]) for a in row["arguments"]]
            for key in ("before", "after")
        )
        try:
            results = launch(row, before)
        except Exception as fault:
            failures.append(f"{row['test']}: {' '.join(str(fault).split())[:200]}")
            continue
        tolerance = max(map(_tolerance, before))
        errors = [error(*pair, row["outgoing"]) for pair in zip(results, after, strict=True)]
        test = row["test"].split("[")[0]
        worst[test] = max(worst.get(test, 0.0), max(errors) / tolerance)
        if max(errors) > tolerance:
            failures.append(f"{row['test']}: {max(errors):.1e} in argument {errors.index(max(errors))}")
    return {"launches": len(launches), "error_of_tolerance": worst, "failures": failures}


def _tolerance(array: np.ndarray) -> float:
    return float(ml_dtypes.finfo(array.dtype).eps) if array.dtype.itemsize == 2 else FP32_TOLERANCE


def error(result: np.ndarray, expected: np.ndarray, outgoing: dict[str, Any] | None = None) -> float:
    """The largest difference as a part of the largest number; infinite where integers, NaN or infinities differ.

    Of rows that a kernel rounds, `outgoing`, the activations are compared, and may be a step apart.
    """
    if np.array_equal(result.view(np.uint8), expected.view(np.uint8)):
        return 0.0
    if expected.dtype == np.uint32 and outgoing is not None:
        return _rounded_error(
            result, expected, QuantizedRow(**{**outgoing, "layout": GroupLayout(**outgoing["layout"])})
        )
    if expected.dtype.kind in "iu":
        return np.inf
    ours, theirs = result.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True) or not np.isfinite(ours[finite]).all():
        return np.inf
    return float(np.abs(ours[finite] - theirs[finite]).max() / max(np.abs(theirs[finite]).max(), 1e-30))


def _rounded_error(result: np.ndarray, expected: np.ndarray, row: QuantizedRow) -> float:
    if not row.consistent(result):
        return np.inf
    ours, theirs = (row.unpack(rows) for rows in (result, expected))
    step = row.largest(theirs) / LARGEST
    difference = float(np.maximum(np.abs(ours - theirs) - step, 0).max() / np.abs(theirs).max())
    squares = slice(row.floats(3), row.floats(3) + row.squares)
    sums = [rows.view(np.float32)[:, squares] for rows in (result, expected)]
    return max(difference, error(*map(np.ascontiguousarray, sums)) if row.squares else 0.0)
