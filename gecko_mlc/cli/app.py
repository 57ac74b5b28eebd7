"""All commands, joined."""

from __future__ import annotations

from collections.abc import Callable

import typer

from gecko_mlc import __version__
from gecko_mlc.cli import bench, chat, evaluate, generate, info, logits
from gecko_mlc.cli.making import add_making
from gecko_mlc.cli.options import grouped

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate.generate,
    "chat": chat.chat,
    "bench": bench.bench,
    "eval": evaluate.evaluate,
    "info": info.info,
    "logits": logits.logits,
}

app = typer.Typer(
    name="gecko-mlc",
    help="Compile Gecko language models ahead of time, and run them anywhere.",
    epilog="Start with: gecko-mlc chat gecko-demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
add_making(app)
for name, command in COMMANDS.items():
    app.command(name)(grouped(command))


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
