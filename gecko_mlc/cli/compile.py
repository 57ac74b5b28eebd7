"""`compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc.cli.common import console, parse_overrides, show_arguments
from gecko_mlc.runtime.errors import GeckoError


def compile(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder, a config.json, or a preset like gecko-120m."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The library; its suffix is its format (.so).")],
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", help="q0f32, q0f16 or q0bf16; by default the model folder's, or q0f32."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    host: Annotated[
        str | None,
        typer.Option("--host", help="An LLVM triple, like aarch64-linux-gnu; by default this machine."),
    ] = None,
    mcpu: Annotated[
        str | None,
        typer.Option("--mcpu", help="An LLVM CPU, like x86-64-v3 or cortex-a76; by default this machine's."),
    ] = None,
    overrides: Annotated[
        str,
        typer.Option("--overrides", help='"max_batch_size=4;prefill_chunk_size=512": slots, and tokens a piece.'),
    ] = "",
    debug_dump: Annotated[
        Path | None, typer.Option("--debug-dump", help="A folder for the intermediate programs.")
    ] = None,
) -> None:
    """Compile a model to a library, ahead of time. No weights are needed.

    Example: gecko-mlc compile gecko-120m --host aarch64-linux-gnu -o dist/libs/gecko-120m-q0f32-arm.so
    """
    from gecko_mlc.gen_config import find_config
    from gecko_mlc.quantization import quantization as scheme
    from gecko_mlc.runtime.model_folder import CHAT_CONFIG, read_chat_config

    config = find_config(model)
    if quantization is None:
        folder = Path(model)
        quantization = read_chat_config(folder).quantization if (folder / CHAT_CONFIG).is_file() else "q0f32"
    limits = parse_overrides(overrides, {"max_batch_size": 1, "prefill_chunk_size": 2048})
    # The compiler loads here, after everything that could be refused without it.
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.target import compile_target

    try:
        target = compile_target(device, host, mcpu)
        show_arguments(
            model=model,
            quantization=quantization,
            device=target.spec.kind,
            host=target.spec.triple,
            mcpu=target.spec.mcpu,
            **limits,
            output=output,
        )
        metadata = compile_library(config, scheme(quantization), target, output, **limits, debug_dump=debug_dump)
    except (ValueError, RuntimeError) as error:
        raise GeckoError(str(error)) from None
    workspace = max(metadata.workspace_bytes.values())
    console.print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, workspace {workspace / 2**20:.1f} MiB")
