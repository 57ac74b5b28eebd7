"""The command line. One module a command; this one joins them and turns errors into messages."""

from __future__ import annotations

import os
import sys

import typer

from gecko_mlc import __version__
from gecko_mlc.cli import bench, chat, compile, convert, evaluate, generate, info, logits, package
from gecko_mlc.cli.interrupts import remember_interrupts
from gecko_mlc.cli.options import grouped

app = typer.Typer(
    name="gecko-mlc",
    help="Compile Gecko language models ahead of time, and run them anywhere.",
    epilog="Start with: gecko-mlc chat gecko-demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("convert_weight")(convert.convert_weight)
app.command("gen_config")(convert.gen_config)
app.command("random_weight")(convert.random_weight)
app.command("compile")(compile.compile)
app.command("package")(package.package)
app.command("generate")(grouped(generate.generate))
app.command("chat")(grouped(chat.chat))
app.command("bench")(grouped(bench.bench))
app.command("eval")(grouped(evaluate.evaluate))
app.command("info")(info.info)
app.command("logits")(grouped(logits.logits))


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors of the user's end in one message and exit code 1."""
    from gecko_mlc.formats.errors import GeckoError
    from gecko_mlc.formats.options import OptionError

    remember_interrupts()
    try:
        app()
    except OptionError as error:
        print(f"error: --{error.option.replace('_', '-')}: {error.reason}", file=sys.stderr)
        sys.exit(1)
    except GeckoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        # What `package` writes has the running side alone.
        if (error.name or "").split(".")[0] not in ("gecko_mlc", "tvm"):
            raise
        print(f"error: there is no {error.name} here; this needs all of gecko-mlc, not a package", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
