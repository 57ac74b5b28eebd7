"""`package`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc.cache import DEMO
from gecko_mlc.cli.compiling import compile_model, default_quantization
from gecko_mlc.cli.options import ArchOption, LibraryQuantizationOption, OverridesOption, StateDtypeOption
from gecko_mlc.cli.terminal import byte_progress, console, say
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.devices import host
from gecko_mlc.targets import find, names, targets


def package(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model folders, or configs and presets, which have no weights."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    device: Annotated[
        list[str],
        typer.Option(
            "--device",
            metavar="|".join(names()),
            help="What to run on; of several, like cuda,cpu, the first that the machine has is taken.",
        ),
    ],
    arch: ArchOption = None,
    quantization: LibraryQuantizationOption = None,
    state_dtype: StateDtypeOption = None,
    mcpu: Annotated[
        str | None, typer.Option("--mcpu", help="An LLVM CPU; by default one that most are, like x86-64-v3.")
    ] = None,
    overrides: OverridesOption = "",
    weights: Annotated[bool, typer.Option(help="Copy the weights of model folders.")] = True,
    wheels: Annotated[
        bool,
        typer.Option(
            "--wheels", help="Bring what comes from PyPI, for this machine's Python: it installs without a network."
        ),
    ] = False,
) -> None:
    """Write a folder that runs models on a machine with neither compiler nor TVM.

    Example: gecko-mlc package dist/my-gecko-q0bf16-MLC --device cuda,cpu --arch sm_80,sm_90 -o dist/my-gecko
    """
    from gecko_mlc.cache import library_name
    from gecko_mlc.convert.chat_config import find_config
    from gecko_mlc.formats.chat_config import CHAT_CONFIG
    from gecko_mlc.models import is_demo, located, model_folder
    from gecko_mlc.package.requirements import fetch_wheels
    from gecko_mlc.package.runtime import OWN_NAMES, copy_model, new_folder, total_bytes, write_readme, write_runtime
    from gecko_mlc.trust import TRUSTED, write_trusted

    wanted = [find(name).name for name in ",".join(device).split(",")]
    devices = {target.name: target.player for target in targets() if target.name in wanted}
    model_names = [_name(model, quantization) for model in models]
    models = [str(model_folder(model, say) if is_demo(model) else located(model)) for model in models]
    if twice := sorted({name for name in model_names if model_names.count(name) > 1}):
        raise GeckoError(f"two of the models are called {twice[0]}; rename one")
    if taken := sorted(OWN_NAMES & set(model_names)):
        raise GeckoError(f"a model called {taken[0]} would take the place of the package's own {taken[0]}; rename it")
    for model in models:
        find_config(model)
    with new_folder(output) as folder:
        write_runtime(folder, list(devices.values()))
        if wheels:
            with console.status("fetching wheels"):
                fetch_wheels(folder)
        write_readme(folder, devices, host.architecture(), model_names)
        size = total_bytes(folder)
        libraries: list[Path] = []
        for model, name in zip(models, model_names, strict=True):
            (folder / name).mkdir()
            for kind, player in devices.items():
                library = folder / name / library_name(kind)
                libraries.append(library)
                # Beside a GPU's library, --arch says nothing of the host's.
                own_arch = None if player.on_host and len(devices) > 1 else arch
                compile_model(
                    model, library, quantization, state_dtype, kind, own_arch, None, mcpu, overrides, portable=True
                )
            if (Path(model) / CHAT_CONFIG).is_file():
                with byte_progress(f"copying {name}") as progress:
                    copy_model(Path(model), folder / name, weights, progress)
            else:
                say(f"{name} is a library alone: {model} is no model folder, which has weights")
        write_trusted(folder / TRUSTED, libraries)
    console.print(f"{output}: {size / 1e6:.1f} MB besides the models' folders; its README.md says how to run it")


def _name(model: str, quantization: str | None) -> str:
    path = Path(model)
    if path.is_dir() or model == DEMO:
        return path.resolve().name
    return f"{path.stem}-{quantization or default_quantization(model)}"
