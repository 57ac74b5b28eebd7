"""How a next token is chosen, with MLC's and OpenAI's names."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from gecko_mlc.formats.options import Options


class Sampling(Options):
    """Sampling parameters; the device applies them in the order penalties, temperature, top-k, top-p,
    min-p. A temperature of 0 is greedy; top_k 0, top_p 1, min_p 0 are off.

    Penalties look at the tokens drawn since `Engine.set_sampling`. Raises `GeckoError` for numbers out
    of range, NaN or infinite, and for unknown names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.8
    top_k: Annotated[int, Field(ge=0, le=2**24)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-100.0, le=100.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-100.0, le=100.0)] = 0.0
