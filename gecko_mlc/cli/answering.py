"""What `generate` and `chat` share: how an answer is drawn, and what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gecko_mlc.api import Generation, GenerationOptions, Model


def sampling_options(
    loaded: Model, changes: dict[str, Any], seed: int, max_tokens: int, stop: list[str] | None
) -> GenerationOptions:
    """The model's generation options with those changed that were given."""
    from gecko_mlc.api import Sampling

    sampling = Sampling(**{**loaded.default_sampling().model_dump(), **changes})
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
