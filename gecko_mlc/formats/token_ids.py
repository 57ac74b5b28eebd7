"""Ids of special tokens, as JSON files name them."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from gecko_mlc.formats.errors import GeckoError


def token_id(value: Any) -> Any:
    """Raises `ValueError` for a value that is no id of any vocabulary."""
    if type(value) is not int or value < 0:
        raise ValueError("should be the id of a token")
    return value


def token_ids(value: Any) -> Any:
    """Raises `ValueError` for a value that is no list of ids."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError("should be a list of ids of tokens")
    return [token_id(i) for i in value]


def _one_or_none(value: Any) -> Any:
    return value if value is None else token_id(value)


def _some_or_none(value: Any) -> Any:
    return token_ids(value) if isinstance(value, list) else _one_or_none(value)


TokenId = Annotated[int | None, BeforeValidator(_one_or_none)]
TokenIds = Annotated[int | list[int] | None, BeforeValidator(_some_or_none)]


def check_ids(fields: BaseModel, vocab_size: int, name: object, within: str = "") -> None:
    """Raises `GeckoError` naming `name` and the field where one of those that end in `token_id` or `token_ids` has no
    id of the vocabulary; `within` is what the names of fields come after."""
    for field, value in fields:
        if isinstance(value, BaseModel):
            check_ids(value, vocab_size, name, f"{within}{field}.")
        elif field.endswith(("token_id", "token_ids")):
            for i in value if isinstance(value, list) else [value]:
                if i is not None and i >= vocab_size:
                    raise GeckoError(
                        f"{name}: {within}{field}: {reprlib.repr(i)} is no id of the vocabulary, which has"
                        f" {vocab_size:,}"
                    )
