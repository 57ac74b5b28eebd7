"""`generate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gecko_mlc.cli.answering import speed_line
from gecko_mlc.cli.interrupts import interruptible
from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import MaxTokensOption, ModelArgument, RunOptions, SamplingOptions, SeedOption
from gecko_mlc.cli.terminal import console, show_arguments, write_text
from gecko_mlc.formats.errors import GeckoError

StopOption = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")]


def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to continue; by default standard input.")
    ] = None,
    max_tokens: MaxTokensOption = 256,
    seed: SeedOption = 0,
    stop: StopOption = None,
    special: Annotated[
        bool, typer.Option("--special", help="Take what reads like a special token in the prompt as one.")
    ] = False,
    sampling: SamplingOptions = SamplingOptions(),
    running: RunOptions = RunOptions(),
) -> None:
    """Continue a text; the continuation streams to standard output.

    Example: gecko-mlc generate gecko-demo --prompt "It is a truth universally acknowledged"
    """
    if prompt is None:
        if sys.stdin.isatty():
            raise GeckoError("no prompt: give one with --prompt, or on standard input")
        prompt = sys.stdin.read()
    show_arguments(model=model, **running._asdict(), max_tokens=max_tokens, seed=seed)
    loaded = load(model, running)
    options = loaded.options(**sampling.given(), seed=seed, max_tokens=max_tokens, stop=stop or ())
    with interruptible() as interrupted:
        generation = loaded.generate(prompt, options, interrupted=interrupted, special=special)
        for text in generation:
            write_text(text)
        write_text("\n")
    console.print(speed_line(generation), style="dim")
    if generation.finish_reason == "interrupted":
        raise KeyboardInterrupt
