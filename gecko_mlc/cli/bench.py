"""`bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import ModelArgument, RunOptions
from gecko_mlc.cli.terminal import console, results, show_arguments
from gecko_mlc.formats.errors import GeckoError

if TYPE_CHECKING:
    from gecko_mlc.runtime.measure.bench import Report

FORMATS = ("table", "md", "csv", "json")


def bench(
    model: ModelArgument,
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", min=0, help="Tokens to prefill.")] = 512,
    decode_tokens: Annotated[int, typer.Option("-n", "--decode-tokens", min=0, help="Tokens to decode.")] = 128,
    depth: Annotated[str, typer.Option("-d", "--depth", help="Positions to measure at, like 0,1000,100000.")] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Counted runs.")] = 5,
    output_format: Annotated[str, typer.Option("--format", help="table, md, csv or json.")] = "table",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file for the result.")] = None,
    running: RunOptions = RunOptions(),
) -> None:
    """Measure tokens per second, and what part of this machine that is.

    Example: gecko-mlc bench gecko-demo --depth 0,1000,100000 --format md -o bench.md
    """
    from gecko_mlc.formats.files import atomic_write
    from gecko_mlc.runtime.measure import bench as core

    if output_format not in FORMATS:
        raise GeckoError(f"--format {output_format!r}: expected one of {', '.join(FORMATS)}")
    depths = parse_depths(depth)
    if not prompt_tokens and not decode_tokens:
        raise GeckoError("nothing to measure: --prompt-tokens and --decode-tokens are both 0")
    show_arguments(
        model=model,
        **running._asdict(),
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        depth=depth,
        repetitions=repetitions,
    )
    loaded = load(model, running)
    with console.status("") as status:
        report = core.run(
            loaded.engine,
            Path(model).name,
            prompt_tokens,
            decode_tokens,
            depths,
            repetitions,
            lambda what: status.update(f"measuring {what}"),
        )
    if output is None and output_format == "table":
        print_table(report)
        return
    if output_format == "json":
        text = report.model_dump_json(indent=2) + "\n"
    else:
        text = core.to_csv(report) if output_format == "csv" else core.to_markdown(report)
    if output is None:
        sys.stdout.write(text)
    else:
        with atomic_write(output) as file:
            file.write(text)


def print_table(report: Report) -> None:
    """The report as a table for people, on standard output."""
    from gecko_mlc.runtime.measure import bench as core

    table = Table(caption=core.summary(report), caption_justify="left")
    for column in core.COLUMNS:
        table.add_column(column, justify="left" if column == "test" else "right")
    for row in core.rows(report):
        table.add_row(*row)
    results.print(table)


def parse_depths(text: str) -> list[int]:
    """A list of positions, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise GeckoError(f"--depth {text!r}: expected numbers separated by commas, like 0,1000,100000")
    return [int(part) for part in parts]
