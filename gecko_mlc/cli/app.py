"""All commands, joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from gecko_mlc import __version__
from gecko_mlc.cli import bench, chat, evaluate, generate, info, logits, trust
from gecko_mlc.cli.making import add_making
from gecko_mlc.cli.options import grouped

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate.generate,
    "chat": chat.chat,
    "bench": bench.bench,
    "eval": evaluate.evaluate,
    "info": info.info,
    "logits": logits.logits,
    "trust": trust.trust,
}


class Commands(TyperGroup):
    """Commands whose help names no type of an option that is there or not."""

    def get_params(self, context: Any) -> list[Any]:
        """The options before a command."""
        return _without_types(super().get_params(context))

    def get_command(self, context: Any, name: str) -> Any:
        """The command of this name, if there is one."""
        command = super().get_command(context, name)
        if command is not None:
            _without_types(command.get_params(context))
        return command


def _without_types(options: list[Any]) -> list[Any]:
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options


app = typer.Typer(
    name="gecko-mlc",
    cls=Commands,
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
