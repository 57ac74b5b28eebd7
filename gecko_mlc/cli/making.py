"""The commands that make models and libraries. What `package` writes has not these, and says so."""

from __future__ import annotations

import importlib.util

import typer

from gecko_mlc.formats.errors import GeckoError


def add_making(app: typer.Typer) -> None:
    """Add the commands, or in their places what names where they are."""
    if importlib.util.find_spec("gecko_mlc.cli.compile") is None:
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        for name in ("convert_weight", "gen_config", "random_weight", "compile", "package"):
            app.command(name, hidden=True, add_help_option=False, context_settings=anything)(_absent)
        return
    from gecko_mlc.cli import compile, convert, package

    app.command("convert_weight")(convert.convert_weight)
    app.command("gen_config")(convert.gen_config)
    app.command("random_weight")(convert.random_weight)
    app.command("compile")(compile.compile)
    app.command("package")(package.package)


def _absent(context: typer.Context) -> None:
    raise GeckoError(f"{context.info_name}: this package only runs models; all of gecko-mlc makes them")
