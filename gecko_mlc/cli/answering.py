"""What `generate` and `chat` share: what an answer took."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gecko_mlc.api import Generation


def speed_line(generation: Generation) -> str:
    """What a generation took, in a line; no speed where none was measured."""
    tokens = len(generation.tokens)
    prefill = _speed(generation.prompt_tokens, generation.prefill_seconds)
    # The first token comes with the prompt.
    decode = _speed(tokens - 1, generation.decode_seconds)
    return f"{generation.prompt_tokens} tokens in{prefill}; {tokens} out{decode}; {generation.finish_reason}"


def _speed(tokens: int, seconds: float) -> str:
    return f", {tokens / seconds:.0f} tokens/s" if tokens > 0 and seconds > 0 else ""
