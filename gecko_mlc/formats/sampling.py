"""How a next token is chosen, with MLC's and OpenAI's names."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from gecko_mlc.formats.options import Options

# Numbers as they are in files, too: no text that reads like one, and no truth value.
Temperature = Annotated[float, Field(strict=True, ge=0.0, le=100.0)]
TopK = Annotated[int, Field(strict=True, ge=0, le=2**24)]
TopP = Annotated[float, Field(strict=True, gt=0.0, le=1.0)]
MinP = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
RepetitionPenalty = Annotated[float, Field(strict=True, gt=0.0, le=100.0)]
Penalty = Annotated[float, Field(strict=True, ge=-100.0, le=100.0)]


class Sampling(Options):
    """Sampling parameters; the device applies them in the order penalties, temperature, top-k, top-p,
    min-p. A temperature of 0 is greedy; top_k 0, top_p 1, min_p 0 are off.

    Penalties look at the tokens drawn since `Engine.set_sampling`. Raises `GeckoError` for numbers out
    of range, NaN or infinite, and for unknown names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Temperature = 0.8
    top_k: TopK = 0
    top_p: TopP = 0.95
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
