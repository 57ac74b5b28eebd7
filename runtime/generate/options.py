"""What a generation is to be like."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from gecko_mlc.formats.sampling import Sampling


class GenerationOptions(BaseModel):
    """How tokens are drawn, from which seed, and what ends the text.

    It ends after `max_tokens` tokens, with one of `stop_tokens`, or before one of the `stop` strings, which are left
    out of the text and may be or contain special tokens. Raises `ValidationError` for numbers out of range.
    """

    model_config = ConfigDict(frozen=True)

    sampling: Sampling = Sampling()
    seed: int = Field(default=0, ge=0, lt=2**64)
    max_tokens: int = Field(default=256, ge=1, le=2**40)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
