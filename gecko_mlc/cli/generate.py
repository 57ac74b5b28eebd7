"""`generate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gecko_mlc.cli.options import (
    DeviceOption,
    ModelArgument,
    ModelLibOption,
    StateDtypeOption,
    byte_progress,
    checked,
    console,
    interruptible,
    say,
    show_arguments,
    write_text,
)
from gecko_mlc.formats.errors import GeckoError

if TYPE_CHECKING:
    from gecko_mlc.api import Generation, GenerationOptions, Model

Temperature = Annotated[float | None, typer.Option(help="0 is greedy; by default the model's.")]
TopK = Annotated[int | None, typer.Option(help="Only the k likeliest tokens; 0 is off.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens with this probability in all.")]
MinP = Annotated[float | None, typer.Option(help="Only tokens this likely, relative to the likeliest.")]
Repetition = Annotated[float | None, typer.Option(help="Divides the scores of tokens drawn before.")]
Presence = Annotated[float | None, typer.Option(help="Subtracted from the scores of tokens drawn before.")]
Frequency = Annotated[float | None, typer.Option(help="The same, times how often they were drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")]


def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to continue; by default standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    seed: Seed = 0,
    stop: Stop = None,
    model_lib: ModelLibOption = None,
    device: DeviceOption = "auto",
    state_dtype: StateDtypeOption = None,
) -> None:
    """Continue a text; the continuation streams to standard output.

    Example: gecko-mlc generate gecko-demo --prompt "It is a truth universally acknowledged"
    """
    from gecko_mlc.api import load_model

    if prompt is None:
        if sys.stdin.isatty():
            raise GeckoError("no prompt: give one with --prompt, or on standard input")
        prompt = sys.stdin.read()
    show_arguments(model=model, model_lib=model_lib, state_dtype=state_dtype, max_tokens=max_tokens, seed=seed)
    with byte_progress("loading") as progress:
        loaded = load_model(model, model_lib, device, say, progress, state_dtype=state_dtype)
    changes = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    options = checked(lambda: sampling_options(loaded, changes, seed, max_tokens, stop))
    with interruptible() as interrupted:
        generation = loaded.generate(prompt, options, interrupted=interrupted)
        for text in generation:
            write_text(text)
        write_text("\n")
    console.print(speed_line(generation), style="dim")
    if generation.finish_reason == "interrupted":
        raise KeyboardInterrupt


def sampling_options(
    loaded: Model, changes: dict[str, Any], seed: int, max_tokens: int, stop: list[str] | None
) -> GenerationOptions:
    """The model's generation options with those changed that were given."""
    from gecko_mlc.api import Sampling

    given = {name: value for name, value in changes.items() if value is not None}
    sampling = Sampling(**{**loaded.default_sampling().model_dump(), **given})
    return loaded.options(sampling=sampling, seed=seed, max_tokens=max_tokens, stop=tuple(stop or ()))


def speed_line(generation: Generation) -> str:
    """What a generation took, in a line."""
    steps = max(len(generation.tokens) - 1, 0)
    prefill = generation.prompt_tokens / max(generation.prefill_seconds, 1e-9)
    decode = steps / max(generation.decode_seconds, 1e-9)
    return (
        f"{generation.prompt_tokens} tokens in, {prefill:.0f} tokens/s;"
        f" {len(generation.tokens)} out, {decode:.0f} tokens/s; {generation.finish_reason}"
    )
