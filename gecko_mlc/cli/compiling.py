"""Compiling as options say, of `compile` and `package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gecko_mlc.cli.options import AUTO, parse_overrides
from gecko_mlc.cli.terminal import say, show_arguments, step_progress
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.models import located
from gecko_mlc.targets import find, targets
from gecko_mlc.trust import trust

if TYPE_CHECKING:
    from gecko_mlc.compile.library import Compiled


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
    from gecko_mlc.compile.hosts import host_triple
    from gecko_mlc.convert.chat_config import find_config
    from gecko_mlc.formats.quantization import quantization as scheme

    config = find_config(str(located(model)), say)
    name = quantization or default_quantization(model)
    limits = parse_overrides(overrides, {"max_batch_size": 1, "prefill_chunk_size": 2048})
    try:
        dtypes, devices = scheme(name, state_dtype), installed(device)
        host = None if host is None else host_triple(host)
        # The compiler loads here, after everything that could be refused without it.
        from gecko_mlc.compile.library import compile_library
        from gecko_mlc.compile.target import compile_target

        target = compile_target(device, host, mcpu, arch, devices, portable)
        show_arguments(
            model=model,
            quantization=name,
            state_dtype=dtypes.state_dtype,
            device=target.spec.kind,
            **target.arguments(),
            **limits,
        )
        with step_progress() as step:
            compiled = compile_library(
                config,
                dtypes,
                target,
                output,
                **limits,
                debug_dump=debug_dump,
                progress=step,
            )
    except (ValueError, RuntimeError) as error:
        raise GeckoError(str(error)) from None
    try:
        trust(output)
    except GeckoError as error:
        say(f"{output} is not remembered as compiled here: {error}")
    return compiled


def installed(device: str) -> dict[str, int]:
    """The architectures of this machine's devices, by their targets; for `auto`, of those that run libraries."""
    known = [t for t in targets() if t.player.usable()] if device == AUTO else [find(device)]
    found = {target.name: target.player.installed() for target in known}
    return {name: architecture for name, architecture in found.items() if architecture is not None}


def default_quantization(model: str) -> str:
    """The model folder's, or q0f32."""
    from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config

    folder = located(model)
    return read_chat_config(folder).quantization if (folder / CHAT_CONFIG).is_file() else "q0f32"
