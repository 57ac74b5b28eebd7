"""What `generate` and `chat` share: a model that is ready to talk, and an answer as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import RunOptions
from gecko_mlc.cli.terminal import prompt_progress, show_arguments, write_text

if TYPE_CHECKING:
    from gecko_mlc.api import Generation, GenerationOptions, Model


def ready(model: str, running: RunOptions, wishes: dict[str, Any]) -> tuple[Model, GenerationOptions]:
    """The model called `model`, and its options with `wishes`, of which what is wrong is said before the long work."""
    from gecko_mlc.api import GenerationOptions

    seed = GenerationOptions(**wishes).seed  # A random one, if need be.
    show_arguments(model=model, **running._asdict(), **{**wishes, "seed": seed})
    loaded = load(model, running, text=True)
    return loaded, loaded.options(**{**wishes, "seed": seed})


def write_answer(generation: Generation) -> None:
    """An answer to standard output, as it comes."""
    with prompt_progress() as generation.stream.progress:
        first = next(generation, "")
    write_text(first)
    for text in generation:
        write_text(text)
    write_text("\n")


def speed_line(generation: Generation) -> str:
    """What a generation took, in a line; no speed where none was measured."""
    tokens = len(generation.tokens)
    prefill = _speed(generation.prompt_tokens, generation.prefill_seconds)
    # The first token comes with the prompt.
    decode = _speed(tokens - 1, generation.decode_seconds)
    return f"{generation.prompt_tokens} tokens in{prefill}; {tokens} out{decode}; {generation.finish_reason}"


def _speed(tokens: int, seconds: float) -> str:
    return f", {tokens / seconds:.0f} tokens/s" if tokens > 0 and seconds > 0 else ""
