"""What a generation is to be like."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from gecko_mlc.formats.options import Options
from gecko_mlc.formats.sampling import Sampling


def random_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return secrets.randbits(32)


class GenerationOptions(Options):
    """How tokens are drawn, from which seed, and what ends the text.

    The same `seed` gives the same text; None is a random one, which `seed` then says. `Sampling`'s names may be given
    here, too: they change `sampling`. The text ends after `max_tokens` tokens, with one of `stop_tokens`, or before
    one of the `stop` strings, which are left out of the text and may be or contain special tokens; one alone may be
    given as it is. Raises `GeckoError` for numbers out of range, and for unknown names.
    """

    model_config = ConfigDict(frozen=True)

    sampling: Sampling = Sampling()
    seed: Annotated[int, BeforeValidator(lambda seed: random_seed() if seed is None else seed)] = Field(
        default=0, ge=0, lt=2**64
    )
    max_tokens: int = Field(default=256, ge=1, le=2**40)
    stop: Annotated[tuple[str, ...], BeforeValidator(lambda stop: (stop,) if isinstance(stop, str) else stop)] = ()
    stop_tokens: frozenset[int] = frozenset()

    @classmethod
    def known(cls) -> list[str]:
        """Its own names, and those of `sampling`."""
        return [*super().known(), *Sampling.known()]

    @model_validator(mode="before")
    @classmethod
    def _gather_sampling(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Sampling's names, where they belong."""
        changes = {name: values[name] for name in Sampling.known() if name in values}
        rest = {name: value for name, value in values.items() if name not in changes}
        sampling = rest.get("sampling", Sampling())
        if changes and isinstance(sampling, Sampling):
            rest["sampling"] = sampling.model_copy(update=changes)
        return rest
