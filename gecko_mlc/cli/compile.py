"""`compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from gecko_mlc.cli.compiling import compile_model
from gecko_mlc.cli.options import (
    AUTO,
    ArchOption,
    ConfigArgument,
    LibraryQuantizationOption,
    OverridesOption,
    StateDtypeOption,
    choice,
)
from gecko_mlc.cli.terminal import console, results
from gecko_mlc.targets import names

if TYPE_CHECKING:
    from gecko_mlc.compile.library import Compiled


def compile(
    model: ConfigArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The library; its suffix is its format (.so).")],
    quantization: LibraryQuantizationOption = None,
    state_dtype: StateDtypeOption = None,
    device: Annotated[
        str,
        choice("device", (AUTO, *names()), "What to compile for; auto is this machine's GPU if it has one."),
    ] = AUTO,
    arch: ArchOption = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="linux-x86_64, linux-aarch64 or an LLVM triple; by default this machine."),
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
    results.print(table)


def _launches(count: int, layers: int) -> str:
    """Launches of a function, like "2 a layer + 1"."""
    in_layer, besides = divmod(count, layers)
    return " + ".join([f"{in_layer} a layer"] * (in_layer > 0) + [str(besides)] * (besides > 0))
