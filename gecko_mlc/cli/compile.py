"""`compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gecko_mlc.cli.options import AUTO, StateDtypeOption, console, parse_overrides, show_arguments
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.targets import find, names, targets

if TYPE_CHECKING:
    from gecko_mlc.compile.library import Compiled

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model folder, a config.json, or a preset like gecko-120m."),
]
QuantizationOption = Annotated[
    str | None,
    typer.Option("--quantization", help="Like q4f16_1; by default the model folder's, or q0f32."),
]
ArchOption = Annotated[
    str | None,
    typer.Option("--arch", help="NVIDIA GPUs, like sm_80,sm_90; by default auto, this machine's."),
]
OverridesOption = Annotated[
    str,
    typer.Option("--overrides", help='"max_batch_size=4;prefill_chunk_size=512": slots, and tokens a piece.'),
]


def compile(
    model: ConfigArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The library; its suffix is its format (.so).")],
    quantization: QuantizationOption = None,
    state_dtype: StateDtypeOption = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="|".join((AUTO, *names())),
            help="What to compile for; auto is this machine's GPU if it has one.",
        ),
    ] = AUTO,
    arch: ArchOption = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="An LLVM triple, like aarch64-linux-gnu; by default this machine."),
    ] = None,
    mcpu: Annotated[
        str | None,
        typer.Option("--mcpu", help="An LLVM CPU, like x86-64-v3 or cortex-a76; by default this machine's."),
    ] = None,
    overrides: OverridesOption = "",
    debug_dump: Annotated[
        Path | None, typer.Option("--debug-dump", help="A folder for the intermediate programs.")
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="List all kernels; by default a GPU's of a decode step.")
    ] = False,
) -> None:
    """Compile a model to a library, ahead of time. No weights are needed.

    Example: gecko-mlc compile gecko-120m --host aarch64-linux-gnu -o dist/libs/gecko-120m-q0f32-arm.so

    Example: gecko-mlc compile gecko-7b --quantization q0bf16 --arch sm_80,sm_90 -o dist/libs/gecko-7b-q0bf16-cuda.so
    """
    compiled = compile_model(model, output, quantization, state_dtype, device, arch, host, mcpu, overrides, debug_dump)
    from gecko_mlc.compile.kernels import launches_of

    layers = compiled.metadata.config["num_layers"]
    for function in ("decode", "prefill", None) if kernels else ("decode",) * bool(compiled.target.columns):
        print_kernels(compiled, layers, function)
    launches, in_layer, besides = launches_of(compiled.kernels, "decode", layers)
    console.print(
        f"decode: {launches} launches, {in_layer} a layer and {besides} besides; {len(compiled.kernels)} kernels in all"
    )
    workspace = max(compiled.metadata.workspace_bytes.values())
    console.print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, workspace {workspace / 2**20:.1f} MiB")


def compile_model(
    model: str,
    output: Path,
    quantization: str | None,
    state_dtype: str | None,
    device: str,
    arch: str | None,
    host: str | None,
    mcpu: str | None,
    overrides: str,
    debug_dump: Path | None = None,
    portable: bool = False,
) -> Compiled:
    """Compile as the options of `compile` say, saying what is done; `portable` is for CPUs that others have, too."""
    from gecko_mlc.convert.chat_config import find_config
    from gecko_mlc.formats.quantization import quantization as scheme

    config = find_config(model)
    name = quantization or default_quantization(model)
    limits = parse_overrides(overrides, {"max_batch_size": 1, "prefill_chunk_size": 2048})
    # The compiler loads here, after everything that could be refused without it.
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target

    try:
        dtypes = scheme(name, state_dtype)
        target = compile_target(device, host, mcpu, arch, installed(device), portable)
        show_arguments(
            model=model,
            quantization=name,
            state_dtype=dtypes.state_dtype,
            device=target.spec.kind,
            **target.arguments(),
            **limits,
        )
        with console.status("") as status:
            return compile_library(
                config,
                dtypes,
                target,
                output,
                **limits,
                debug_dump=debug_dump,
                progress=lambda step: status.update(step),
            )
    except (ValueError, RuntimeError) as error:
        raise GeckoError(str(error)) from None


def installed(device: str) -> dict[str, int]:
    """The architectures of this machine's devices, by their targets; for `auto`, of those that run libraries."""
    known = [t for t in targets() if t.player.usable()] if device == AUTO else [find(device)]
    found = {target.name: target.player.installed() for target in known}
    return {name: architecture for name, architecture in found.items() if architecture is not None}


def default_quantization(model: str) -> str:
    """The model folder's, or q0f32."""
    from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config

    folder = Path(model)
    return read_chat_config(folder).quantization if (folder / CHAT_CONFIG).is_file() else "q0f32"


def print_kernels(compiled: Compiled, layers: int, function: str | None = None) -> None:
    """A table of one function's kernels on standard output; without one, of those of neither decode nor prefill."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    table.add_column(function or "others")
    for name in compiled.target.columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.caption, table.caption_justify = compiled.target.caption or None, "left"
    for kernel in compiled.kernels:
        if function in kernel.launches:
            row = [kernel.name, _launches(kernel.launches[function], layers)]
        elif function is None and not {"decode", "prefill"} & set(kernel.launches):
            row = [kernel.name, ", ".join(kernel.launches)]
        else:
            continue
        table.add_row(*row, *compiled.target.row(kernel))
    Console(highlight=False).print(table)


def _launches(count: int, layers: int) -> str:
    """Launches of a function, like "2 a layer + 1"."""
    in_layer, besides = divmod(count, layers)
    return " + ".join([f"{in_layer} a layer"] * (in_layer > 0) + [str(besides)] * (besides > 0))
