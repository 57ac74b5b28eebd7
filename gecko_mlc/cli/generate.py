"""`generate`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gecko_mlc.cli.answering import ready, speed_line, write_answer
from gecko_mlc.cli.interrupts import interruptible
from gecko_mlc.cli.options import ModelArgument, RunOptions, SamplingOptions, SeedOption
from gecko_mlc.cli.streams import utf8, utf8_argument
from gecko_mlc.cli.terminal import console
from gecko_mlc.formats.errors import GeckoError


def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to continue; by default standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="The most tokens to generate.")] = 256,
    seed: SeedOption = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="<str>", help="Text that ends the answer; may be repeated.")
    ] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Take what reads like a special token in the prompt as one.")
    ] = False,
    sampling: SamplingOptions = SamplingOptions(),
    running: RunOptions = RunOptions(),
) -> None:
    """Continue a text; the continuation streams to standard output.

    Example: gecko-mlc generate gecko-demo --prompt "It is a truth universally acknowledged"
    """
    text = read_prompt(prompt)
    wishes: dict[str, Any] = {**sampling.given(), "max_tokens": max_tokens, "seed": seed}
    if stop:
        wishes["stop"] = [utf8_argument(one, "--stop") for one in stop]
    loaded, options = ready(model, running, wishes)
    with interruptible() as interrupted:
        generation = loaded.generate(text, options, interrupted=interrupted, special=special)
        write_answer(generation)
    console.print(speed_line(generation), style="dim")
    if generation.finish_reason == "interrupted":
        raise KeyboardInterrupt


def read_prompt(prompt: str | None) -> str:
    """What was given, or standard input. Raises `GeckoError` where there is no text in it."""
    if prompt is not None:
        text = utf8_argument(prompt, "--prompt")
    elif sys.stdin.isatty():
        raise GeckoError("no prompt: give one with --prompt, or on standard input")
    else:
        text = utf8(sys.stdin.buffer.read(), "standard input")
    if not text.strip():
        raise GeckoError("the prompt is empty: expected some text to continue")
    return text
