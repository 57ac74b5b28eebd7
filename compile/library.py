"""Model libraries: compiled functions with their metadata inside, in one shared object."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tvm
from tvm import relax

from gecko_mlc.compile.backends.backend import Backend
from gecko_mlc.compile.kernels import Kernel, kernels_of
from gecko_mlc.compile.link import linker
from gecko_mlc.compile.lint import check_plan, check_state_use, declared_writes
from gecko_mlc.compile.pipeline import export, lower
from gecko_mlc.compile.plan import make_plan
from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.library import METADATA_MARKER, Metadata, functions_of
from gecko_mlc.formats.plan import PLAN_MARKER, dump_plan
from gecko_mlc.formats.quantization import Quantization
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.model import Build
from gecko_mlc.state import state_tensors

SUFFIXES = (".so",)
# The default bound of a prefill piece, and so of the workspace.
PREFILL_CHUNK_SIZE = 2048


class Compiled(NamedTuple):
    """What a library says of itself, the kernels in it, and what compiled it."""

    metadata: Metadata
    kernels: tuple[Kernel, ...]
    target: Backend


def compile_library(
    config: GeckoConfig,
    quantization: Quantization,
    target: Backend,
    output: Path,
    max_batch_size: int = 1,
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE,
    debug_dump: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Compiled:
    """Compile a model for `target` into the library `output`, whole or not at all.

    `max_batch_size` is the number of state slots, `prefill_chunk_size` the most tokens of one prefill
    piece (never more than a chunk). `debug_dump` is a folder for the intermediate programs. `progress` is
    told each step. Raises `ValueError` for a suffix that is not known and `RuntimeError` when nothing can
    link, or compile for the target.
    """
    if output.suffix not in SUFFIXES:
        raise ValueError(f"{output}: unknown suffix {output.suffix!r}; expected {' or '.join(SUFFIXES)}")
    link = linker(target.spec.triple)
    prefill_chunk_size = min(prefill_chunk_size, config.chunk_size)
    progress("building the model's functions")
    build = Build(config, quantization, target.hardware, max_batch_size, target.launches)
    exported, parameters = export(build, prefill_chunk_size)
    if faults := check_state_use(exported):
        raise AssertionError("state is used wrongly:\n" + "\n".join(faults))
    lowered = lower(exported)
    metadata = Metadata(
        abi_version=ABI_VERSION,
        model_type="gecko",
        config=config.model_dump(),
        quantization=quantization.name,
        state_dtype=quantization.state_dtype,
        target=target.spec,
        max_batch_size=max_batch_size,
        prefill_chunk_size=prefill_chunk_size,
        absorb_tile=target.hardware.absorb_tile,
        parameters=parameters,
        state=tuple(state_tensors(config, quantization, target.hardware)),
        workspace_bytes={name: workspace_bytes(lowered[name]) for name in functions_of(target.hardware.absorb_tile)},
        tvm_version=tvm.__version__,
    )
    kernels = kernels_of(lowered)
    text = metadata.model_dump_json(by_alias=True)
    lowered["_metadata"] = _constant_function(text)
    built = target.build(lowered, kernels, progress)
    plan = None
    if built.split is not None:
        plan = make_plan(metadata, lowered, built.split, target.requirements)
        if faults := check_plan(plan, declared_writes(exported)):
            raise AssertionError("the launch plan is wrong:\n" + "\n".join(faults))
    if debug_dump is not None:
        debug_dump.mkdir(parents=True, exist_ok=True)
        (debug_dump / "exported.py").write_text(exported.script())
        (debug_dump / "lowered.py").write_text(lowered.script())
        (debug_dump / "metadata.json").write_text(metadata.model_dump_json(indent=2, by_alias=True))
        for name, content in built.artifacts.items():
            (debug_dump / name).write_bytes(content)
        if plan is not None:
            (debug_dump / "plan.json").write_text(plan.model_dump_json(indent=2, exclude_defaults=True))
    progress("linking")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        temporary = Path(folder) / output.name
        source = Path(folder) / "metadata.c"
        constants = _marked_constant("metadata", METADATA_MARKER, text)
        if plan is not None:
            constants += _marked_constant("plan", PLAN_MARKER, dump_plan(plan))
        source.write_text(constants)
        sources = [str(path) for path in (source, *target.sources)]
        built.executable.export_library(str(temporary), fcompile=link, workspace_dir=folder, addons=sources)
        target.check(temporary, built)
        os.replace(temporary, output)
    return Compiled(metadata, built.kernels, target)


def _constant_function(text: str) -> relax.Function:
    builder = relax.BlockBuilder()
    with builder.function("_metadata", []):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.finalize()["_metadata"]


def _marked_constant(name: str, marker: bytes, text: str) -> str:
    """C source of a text for readers of the file, who need not load the library."""
    content = ",".join(str(byte) for byte in marker + text.encode() + b"\0")
    return f"const char gecko_mlc_{name}[] = {{{content}}};\n"


def workspace_bytes(function: relax.Function) -> int:
    """The planned storage of a lowered function, in bytes."""
    total = 0

    def visit(node: tvm.ir.Node) -> None:
        nonlocal total
        if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get("relax.memory.alloc_storage"):
            total += int(node.args[0].values[0])

    relax.analysis.post_order_visit(function.body, visit)
    return total
