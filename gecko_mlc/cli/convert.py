"""`convert_weight`, `gen_config`, `random_weight`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc.cli.options import QuantizationOption, choice
from gecko_mlc.cli.terminal import byte_progress, console, say, show_arguments
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import quantization as find_quantization
from gecko_mlc.formats.templates import TEMPLATES

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG_OR_DIR",
        help="A config.json with the reference's field names, a folder with one (tokenizer optional), gecko-demo or a"
        " preset.",
    ),
]
FLOATS = ("float32", "float16", "bfloat16")
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")]
TemplateOption = Annotated[
    str | None,
    choice("conv-template", list(TEMPLATES), "How a dialogue becomes text; by default LM, of gecko-demo play."),
]


def convert_weight(
    config: ConfigArgument,
    output: OutputOption,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="The checkpoint, a file or folder; by default beside the config."),
    ] = None,
    quantization: QuantizationOption = "q0f32",
    conv_template: TemplateOption = None,
) -> None:
    """Convert a checkpoint (.safetensors or .pth) to a complete model folder.

    A conversion that was interrupted goes on where it was when the same command is given again.

    Example: gecko-mlc convert_weight my-gecko/ --quantization q0f16 -o dist/my-gecko-q0f16-MLC
    """
    from gecko_mlc.convert.chat_config import plan_files
    from gecko_mlc.convert.checkpoint import open_checkpoint
    from gecko_mlc.convert.weights import convert_weights
    from gecko_mlc.models import config_source

    scheme = find_quantization(quantization)
    show_arguments(config=config, source=source, quantization=quantization, output=output)
    command = shlex.join(["gecko-mlc", *sys.argv[1:]])
    with config_source(config) as path:
        # What is wrong with them is said before the long work.
        files = plan_files(path, scheme, conv_template or _own_template(config), say)
        checkpoint = open_checkpoint(source or _beside(path, config), say)
        try:
            with byte_progress("converting") as progress:
                convert_weights(files.config, checkpoint, scheme, output, progress, say, command)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on from here") from None
        files.write(output)
    console.print(f"{files.config.num_parameters():,} parameters in {output}")


def gen_config(
    config: ConfigArgument,
    output: OutputOption,
    quantization: QuantizationOption = "q0f32",
    conv_template: TemplateOption = None,
) -> None:
    """Write mlc-chat-config.json and copy the tokenizer, without weights.

    Example: gecko-mlc gen_config my-gecko/config.json --conv-template chatml -o dist/my-gecko-q0f32-MLC
    """
    from gecko_mlc.convert.chat_config import plan_files
    from gecko_mlc.models import config_source

    show_arguments(config=config, quantization=quantization, conv_template=conv_template, output=output)
    with config_source(config) as path:
        plan_files(path, find_quantization(quantization), conv_template or _own_template(config), say).write(output)


def _own_template(config: str) -> str:
    """The conversation template of a checkpoint, if the user names none."""
    from gecko_mlc.cache import DEMO_TEMPLATE
    from gecko_mlc.models import is_demo

    return DEMO_TEMPLATE if is_demo(config) else "LM"


def _beside(path: Path, config: str) -> Path:
    """Where the checkpoint is that belongs to the config at `path`, called `config`."""
    from gecko_mlc.models import located

    if not located(config).exists() and not path.is_dir():
        raise GeckoError(f"{config}: a preset has no weights; name a checkpoint with --source")
    return path if path.is_dir() else path.parent


def random_weight(
    config: Annotated[str, typer.Argument(metavar="PRESET_OR_CONFIG", help="A preset, or a config.json.")],
    output: OutputOption,
    dtype: Annotated[str, choice("dtype", FLOATS, "Of matrices.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Make a checkpoint of random weights, for benchmarks.

    Example: gecko-mlc random_weight gecko-120m -o checkpoints/gecko-120m
    """
    from gecko_mlc.convert.chat_config import find_config
    from gecko_mlc.convert.random import write_random_checkpoint
    from gecko_mlc.convert.shards import check_space
    from gecko_mlc.models import located

    model = find_config(str(located(config)), say)
    show_arguments(config=config, dtype=dtype, seed=seed, output=output)
    check_space(output, model.num_parameters() * (4 if dtype == "float32" else 2))
    with byte_progress("writing") as progress:
        write_random_checkpoint(model, output, dtype, seed, progress)
    console.print(f"{model.num_parameters():,} parameters in {output}")
