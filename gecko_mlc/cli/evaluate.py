"""`eval`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gecko_mlc.cli.interrupts import interruptible
from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import ModelArgument, RunOptions
from gecko_mlc.cli.terminal import byte_progress, results, show_arguments
from gecko_mlc.formats.errors import GeckoError

if TYPE_CHECKING:
    from gecko_mlc.runtime.measure.evaluation import Estimate, Report

STANDARD_INPUT = "-"


def evaluate(
    model: ModelArgument,
    text: Annotated[
        str, typer.Argument(metavar="TEXT_FILE", help="A text in UTF-8 of any length; - is standard input.")
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="A model folder to compare with, of the same tokenizer.")
    ] = None,
    baseline_lib: Annotated[
        Path | None, typer.Option("--baseline-lib", help="The baseline's compiled library.")
    ] = None,
    running: RunOptions = RunOptions(),
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Measure perplexity on a text, and how far a model is from a baseline: KL divergence and top-1 agreement.

    The text streams through once, in constant memory. Ctrl-C ends it with what was measured so far.

    Example: gecko-mlc eval my-gecko-q4f16_1-MLC book.txt --baseline my-gecko-q0f32-MLC
    """
    from gecko_mlc.runtime.measure.evaluation import evaluate as measure
    from gecko_mlc.runtime.text.long_text import read_blocks

    if baseline_lib is not None and baseline is None:
        raise GeckoError("--baseline-lib: the library of what? give the model folder with --baseline")
    show_arguments(
        model=model,
        text=text,
        **running._asdict(),
        baseline=baseline,
        baseline_lib=baseline_lib,
    )
    with open_text(text) as file:
        loaded = load(model, running, text=True)
        other = None
        if baseline is not None:
            other = load(
                baseline, running._replace(model_lib=baseline_lib, state_dtype=None), "loading the baseline", True
            )
        size = text_bytes(file)
        with interruptible() as interrupted, byte_progress("measuring") as progress:
            report = measure(loaded, read_blocks(file, text), other, interrupted, lambda done: progress(done, size))
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_report(report)
    if not report.complete:
        raise KeyboardInterrupt("this is what was measured so far")


def open_text(name: str) -> io.BufferedReader:
    """The file called `name`, or standard input."""
    if name == STANDARD_INPUT:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return open(name, "rb")


def text_bytes(file: io.BufferedReader) -> int | None:
    """How long a text is; of a pipe that is not known."""
    return os.fstat(file.fileno()).st_size or None


def print_report(report: Report) -> None:
    """The report for people, on standard output."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows(report):
        table.add_row(name, value)
    results.print(table)


def rows(report: Report) -> list[tuple[str, str]]:
    """What was measured, a name and a value each."""
    result = [
        ("perplexity", with_error(report.perplexity, ".4f", ".4f")),
        ("nats per token", f"{report.nats_per_token:.4f}"),
        ("nats per byte", f"{report.nats_per_byte:.4f}"),
        ("bits per byte", f"{report.bits_per_byte:.4f}"),
        ("measured", f"{report.tokens:,} tokens, {report.bytes:,} bytes; {report.tokens_per_second:,.0f} tokens/s"),
    ]
    if (c := report.comparison) is not None:
        result += [
            (f"beside {c.baseline}", f"perplexity {c.baseline_perplexity:.4f}"),
            ("perplexity ratio", with_error(c.perplexity_ratio, ".6f", ".6f")),
            ("KL divergence", f"{with_error(c.kl_divergence, '.3e', '.1e')} nats a token"),
            ("top-1 agreement", f"{100 * c.top1_agreement:.2f} %"),
        ]
    return result


def with_error(estimate: Estimate, mean: str, error: str) -> str:
    """An estimate's mean and error in these formats."""
    if estimate.error is None:
        return f"{estimate.mean:{mean}} (too few tokens to say how exactly)"
    return f"{estimate.mean:{mean}} ± {estimate.error:{error}}"
