"""`bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import ModelArgument, RunOptions, choice
from gecko_mlc.cli.terminal import results, show_arguments, step_progress, write_text
from gecko_mlc.formats.errors import GeckoError, OptionError

if TYPE_CHECKING:
    from gecko_mlc.runtime.measure.bench import Report

FORMATS = ("table", "md", "csv", "json")
SUFFIXES = {f".{name}": name for name in FORMATS[1:]}


def bench(
    model: ModelArgument,
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", min=0, help="Tokens to prefill.")] = 512,
    decode_tokens: Annotated[int, typer.Option("-n", "--decode-tokens", min=0, help="Tokens to decode.")] = 128,
    depth: Annotated[str, typer.Option("-d", "--depth", help="Positions to measure at, like 0,1000,100000.")] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Counted runs.")] = 5,
    output_format: Annotated[
        str | None, choice("format", FORMATS, "By default what the file's name ends in, or a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file for the result.")] = None,
    running: RunOptions = RunOptions(),
) -> None:
    """Measure tokens per second, and what part of this machine that is.

    Ctrl-C ends it with what was measured so far.

    Example: gecko-mlc bench gecko-demo --depth 0,1000,100000 -o bench.md
    """
    from gecko_mlc.runtime.measure import bench as core

    form = format_of(output_format, output)
    depths = parse_depths(depth)
    for option, most in (("prompt-tokens", prompt_tokens), ("decode-tokens", decode_tokens), ("depth", max(depths))):
        if most > core.MOST_TOKENS:
            raise OptionError(option, f"expected at most {core.MOST_TOKENS:,} tokens, got {most:,}")
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
    with step_progress() as step:
        report = core.run(
            loaded.engine,
            Path(model).resolve().name,
            prompt_tokens,
            decode_tokens,
            depths,
            repetitions,
            lambda what: step(f"measuring {what}"),
        )
    write(report, form, output)
    if not report.complete:
        raise KeyboardInterrupt("this is what was measured so far")


def format_of(wanted: str | None, output: Path | None) -> str:
    """The form of a result that goes to `output`, or to standard output. Raises `GeckoError` where it is none, or
    cannot go there."""
    from gecko_mlc.formats.files import check_writable

    if output is None:
        return wanted or "table"
    check_writable(output)
    if wanted == "table":
        raise GeckoError(f"--format table is for terminals; of a file expected one of {', '.join(FORMATS[1:])}")
    if wanted is None and output.suffix not in SUFFIXES:
        raise GeckoError(f"-o {output}: expected a name that ends in {', '.join(SUFFIXES)}, or what it is by --format")
    return wanted or SUFFIXES[output.suffix]


def write(report: Report, form: str, output: Path | None) -> None:
    """The report to `output`, or to standard output, as it is where the file can no longer be written."""
    from gecko_mlc.formats.files import atomic_write
    from gecko_mlc.runtime.measure import bench as core

    if form == "table":
        print_table(report)
        return
    text = {"md": core.to_markdown, "csv": core.to_csv, "json": core.to_json}[form](report)
    if output is None:
        write_text(text)
        return
    try:
        with atomic_write(output) as file:
            file.write(text)
    except BaseException:
        write_text(text)
        raise


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
    if not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise GeckoError(f"--depth {text!r}: expected numbers separated by commas, like 0,1000,100000")
    return [int(part) for part in parts]
