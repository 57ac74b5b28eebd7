"""Integers of 32 bits that depend on a call's sizes, written as data: nothing is parsed from text or evaluated as code.

An expression is an integer, a symbol, or a list of an operator and its operands: `["/", ["+", "n", 255], 256]`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, WithJsonSchema

# Rows of a prefill piece, and slots of a step: at least one.
Symbol = Literal["n", "b"]
SYMBOLS: tuple[Symbol, ...] = ("n", "b")
LARGEST = 2**31 - 1
MAX_DEPTH, MAX_NODES = 16, 64

# A true comparison is 1, a false one 0; what is not 0 is true. All operands are evaluated.
_BINARY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "and": lambda a, b: a != 0 and b != 0,
    "or": lambda a, b: a != 0 or b != 0,
}
_OPERANDS = {**dict.fromkeys(_BINARY, 2), "not": 1, "select": 3}

EXPRESSION_SCHEMA = {
    "description": __doc__,
    "anyOf": [
        {"type": "integer", "minimum": -LARGEST - 1, "maximum": LARGEST},
        {"enum": list(SYMBOLS)},
        *(
            {
                "type": "array",
                "prefixItems": [
                    {"enum": [name for name, operands in _OPERANDS.items() if operands == count]},
                    *[{"$ref": "#/$defs/Expression"}] * count,
                ],
                "minItems": count + 1,
                "maxItems": count + 1,
            }
            for count in (2, 1, 3)
        ),
    ],
}


def _expression(value: Any, depth: int = 0) -> Any:
    if type(value) is int:
        return _fitting(value)
    if isinstance(value, str):
        if value not in SYMBOLS:
            raise ValueError("unknown symbol")
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("expected an integer, a symbol or a list")
    if depth == MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    name = value[0] if value else None
    if not isinstance(name, str) or name not in _OPERANDS:
        raise ValueError("unknown operator")
    if len(value) != _OPERANDS[name] + 1:
        raise ValueError("wrong number of operands")
    return (name, *(_expression(operand, depth + 1) for operand in value[1:]))


def parse_expression(value: Any) -> Any:
    """The `Expression` in a JSON value, lists as tuples. Raises `ValueError` for anything else, and for a large one."""
    expression = _expression(value)
    if _nodes(expression) > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES} parts")
    return expression


def _nodes(value: Any) -> int:
    return 1 + sum(map(_nodes, value[1:])) if isinstance(value, tuple) else 1


def _fitting(value: int) -> int:
    if not -LARGEST - 1 <= value <= LARGEST:
        raise ValueError("overflow of 32 bits")
    return value


Expression = Annotated[Any, PlainValidator(parse_expression), WithJsonSchema({"$comment": "Expression"})]


def evaluate(expression: Any, sizes: Mapping[str, int]) -> int:
    """The value of an `Expression` for these sizes.

    Raises `ValueError` where a symbol has no size, and for what languages disagree about: a value of more than 32
    bits, and the division of a negative number or by one that is not positive.
    """
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        if expression not in sizes:
            raise ValueError("unknown symbol")
        return sizes[expression]
    name, *operands = expression
    values = [evaluate(operand, sizes) for operand in operands]
    if name == "not":
        return int(values[0] == 0)
    if name == "select":
        return values[1] if values[0] else values[2]
    if name in ("/", "%"):
        if values[1] == 0:
            raise ValueError("division by zero")
        if values[0] < 0 or values[1] < 0:
            raise ValueError("division of or by a negative number")
    return _fitting(int(_BINARY[name](*values)))


def infix(expression: Any) -> str:
    """An `Expression` for people."""
    if not isinstance(expression, tuple):
        return str(expression)
    name, *operands = expression
    texts = [infix(operand) for operand in operands]
    if name in ("min", "max", "not", "select"):
        return f"{name}({', '.join(texts)})"
    return f"({texts[0]} {name} {texts[1]})"
