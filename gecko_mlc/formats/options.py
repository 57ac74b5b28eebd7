"""Values that users give in Python: checked when they are made, with one class of errors for all that can be wrong."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gecko_mlc.formats.errors import OptionError

Self = TypeVar("Self", bound="Options")


class Options(BaseModel):
    """A schema whose values users make, too: where they are wrong or unknown, `OptionError` says so.

    Reading a file goes by `model_validate`, which is pydantic's.
    """

    def __init__(self, **values: Any) -> None:
        known = self.known()
        for name in values:
            if name not in known:
                raise unknown_option(name, known)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(*first_fault(error)) from None

    # Not to be called by `model_validate`, of this and of what it is a part of.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValueError:
            raise OptionError(name, "cannot be changed; `model_copy(update={…})` makes other options") from None

    @classmethod
    def known(cls) -> list[str]:
        """The names that values are given by."""
        return list(cls.model_fields)

    def model_copy(self: Self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same with what `update` says. Raises `OptionError` as making it does."""
        return type(self)(**{**dict(self), **(update or {})})


def unknown_option(name: str, known: Sequence[str]) -> OptionError:
    """The error of a name that is none of the `known` ones, with what was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {_any_of(known)}"
    return OptionError(name, f"no such option; {hint}")


def unknown_value(option: str, value: object, known: Sequence[str]) -> OptionError:
    """The error of a value that is none of the `known` ones."""
    return OptionError(option, f"should be {_any_of(known)}, got {reprlib.repr(value)}")


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The first field that is at fault, and what is wrong with it."""
    fault = error.errors()[0]
    option = ".".join(str(part)[:80] for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return option, "no such option"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] != "missing":
        reason += f", got {reprlib.repr(fault['input'])}"
    return option, reason


def check_type(option: str, value: object, *kinds: type) -> None:
    """Raises `OptionError` for a value that is none of these kinds."""
    if not isinstance(value, kinds):
        raise unknown_value(option, value, [kind.__name__ for kind in kinds])


def _any_of(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])
