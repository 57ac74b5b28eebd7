"""`info`."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc import __version__
from gecko_mlc.cli.terminal import say
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.devices import host
from gecko_mlc.targets import targets


def info(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL_OR_LIB]", help="A model folder, gecko-demo, a preset or a library; by default this machine."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Of a model folder: checksums, and that all weights are finite.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Of a GPU's library: its functions, launches and storages.")
    ] = False,
) -> None:
    """Tell what a model, a library or this machine is.

    Example: gecko-mlc info dist/libs/gecko-120m-q0f32-cpu.so
    """
    from gecko_mlc.models import is_demo, located, model_folder

    if plan:
        print_plan(None if what is None else located(what))
        return
    if what is None:
        rows = machine_rows()
    elif is_demo(what) or located(what).is_dir():
        rows = folder_rows(model_folder(what, say), check)
    elif located(what).exists() or (preset := preset_rows(what)) is None:
        rows = library_rows(located(what))
    else:
        rows = preset
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def print_plan(library: Path | None) -> None:
    """The launch plan in a library."""
    from gecko_mlc.cli.plan import plan_lines
    from gecko_mlc.formats.plan import read_plan

    if library is None or library.is_dir():
        raise GeckoError("--plan lists a library's launches; name one")
    print("\n".join(plan_lines(read_plan(library))))


def machine_rows() -> list[tuple[str, str]]:
    """This machine and what is installed on it."""
    rows = [
        ("gecko-mlc", __version__),
        ("python", platform.python_version()),
        ("cpu", host.cpu_name()),
        ("architecture", host.architecture()),
        ("usable cores", host.describe_usable_cores()),
    ]
    features = host.cpu_features()
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bf16", "avx512vnni", "neon", "dotprod")
    if features is not None:
        rows.append(("features", " ".join(name for name in wanted if name in features)))
    rows += device_rows()
    rows.append(("home folder", _home()))
    for package, use in (
        ("apache-tvm", "required"),
        ("apache-tvm-ffi", "required"),
        ("torch", "for .pth checkpoints: pip install 'gecko-mlc[torch]'"),
        ("ziglang", "to link for other machines: pip install 'gecko-mlc[cross]'"),
    ):
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, f"not installed ({use})"))
    return rows


def _home() -> str:
    from gecko_mlc.home import VARIABLE, home_folder

    try:
        return f"{home_folder()} ({VARIABLE} says another)"
    except GeckoError as error:
        return f"none: {error}"


def device_rows() -> list[tuple[str, str]]:
    """This machine's devices, and what it takes to run libraries on them and to compile them."""
    rows = [row for target in targets() for row in target.player.rows()]
    if importlib.util.find_spec("gecko_mlc.compile") is None:
        return [*rows, ("compiler", "none (this is the part of gecko-mlc that runs models)")]
    return [*rows, *(row for target in targets() for row in target.backend.tools())]


def preset_rows(name: str) -> list[tuple[str, str]] | None:
    """A preset; None where there is none of this name."""
    try:
        from gecko_mlc.config import PRESETS, preset
    except ModuleNotFoundError:  # In a package.
        return None
    if name not in PRESETS:
        return None
    config = preset(name)
    fields = [(key, str(value)) for key, value in config.model_dump().items()]
    return [("preset", name), ("parameters", f"{config.num_parameters():,}"), *fields]


def folder_rows(folder: Path, check: bool) -> list[tuple[str, str]]:
    """A model folder."""
    from gecko_mlc.formats.chat_config import read_chat_config
    from gecko_mlc.formats.weights import check_folder, read_tensor_cache

    chat_config = read_chat_config(folder)
    cache = read_tensor_cache(folder)
    records = [record for shard in cache.records for record in shard.records]
    rows = [
        ("model folder", str(folder)),
        ("quantization", chat_config.quantization),
        ("tensors", f"{len(records)} in {len(cache.records)} shards"),
        ("bytes", f"{sum(record.nbytes for record in records):,}"),
        ("tokenizer", ", ".join(chat_config.tokenizer_files) or "none"),
        ("conversation", chat_config.conv_template.name),
        *((name, str(value)) for name, value in chat_config.config.items()),
    ]
    if check:
        if faults := check_folder(folder):
            raise GeckoError(f"{folder}: " + "; ".join(faults[:8]))
        rows.append(("check", "all checksums agree, all weights are finite"))
    return rows


def library_rows(path: Path) -> list[tuple[str, str]]:
    """A library."""
    from gecko_mlc.formats.library import read_metadata
    from gecko_mlc.runtime.memory import nbytes, workspace_bytes

    m = read_metadata(path)
    state = sum(map(nbytes, m.state))
    return [
        ("library", str(path)),
        ("ABI", str(m.abi_version)),
        ("TVM", m.tvm_version),
        *m.target.rows(),
        ("runs here", _runs_here(path)),
        ("quantization", m.quantization),
        ("state dtype", m.state_dtype),
        ("slots", str(m.max_batch_size)),
        ("bytes of state a slot", f"{state:,}"),
        ("tokens a prefill piece", str(m.prefill_chunk_size)),
        ("parameters", f"{sum(p.elements for p in m.parameters):,}"),
        ("bytes of workspace", f"{workspace_bytes(m):,}"),
        *((name, str(value)) for name, value in m.config.items()),
    ]


def _runs_here(path: Path) -> str:
    from gecko_mlc.runtime.library import Library, check_library
    from gecko_mlc.trust import check_undamaged, is_trusted

    try:
        check_undamaged(path)
        check_library(path)
        if not is_trusted(path):
            return f"not tried, it is not trusted: `gecko-mlc trust {path}`"
        Library(path)
    except GeckoError as error:
        return f"no: {str(error).removeprefix(f'{path}: ')}"
    return "yes"
