"""What may be in a file that comes from anywhere: noise, foreign JSON, and a valid file with something changed."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# In JSON, they stand for texts that `json.dumps` does not write.
RAW = {
    "@digits": "9" * 5000,
    "@huge": "9" * 4000,
    "@exponent": "1e400",
    "@nan": "NaN",
    "@minus infinity": "-Infinity",
    "@nested": "[" * 300 + "]" * 300,
    "@deep": "[" * 100_000,
    "@twice": '{"a": 1, "a": 2}',
    "@surrogate": r'"\ud800"',
}
SCALARS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        32,
        80,
        256,
        2**31,
        2**53,
        2**63,
        2**64,
        10**30,
        -(2**63),
        0.0,
        -0.0,
        0.5,
        1.5,
    ),
    *(
        1e-300,
        1e308,
        "",
        "x",
        "1",
        "n",
        "b",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a\0b",
        "\x1b[31m",
        "a\nb",
        "\u202e",
        "a" * 5000,
    ),
    *("float32", "float16", "int8", "raw", "cpu", "cuda", "absorb", "{system_message}", "{", "<|im_end|>"),
    *RAW,
]


def scalars() -> st.SearchStrategy[Any]:
    """Values that are no containers, most of them odd."""
    return st.sampled_from(SCALARS) | st.integers(-10, 300) | st.text(max_size=8) | st.floats()


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, of a few parts."""
    keys = st.sampled_from(["a", "", "__proto__", "name", "shape", "\x1b[2J", "model_config"]) | st.text(max_size=5)
    return st.recursive(
        scalars(),
        lambda values: st.lists(values, max_size=5) | st.dictionaries(keys, values, max_size=5),
        max_leaves=12,
    )


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with up to three of its parts replaced, left out, doubled or renamed."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw(st.integers(0, 9)) == 0:
        return draw(json_values())
    key = draw(st.sampled_from(inside))
    action = draw(st.sampled_from(["inside", "inside", "inside", "leave out", "double", "replace"]))
    if action == "inside":
        value[key] = _change(draw, value[key])
    elif action == "leave out":
        del value[key]
    elif action == "replace":
        value[key] = draw(scalars())
    elif isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    else:
        value[draw(st.text(max_size=8) | st.sampled_from(inside))] = copy.deepcopy(value[key])
    return value


def json_text(value: Any) -> str:
    """A JSON value as text, with what no writer of JSON writes."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """The bytes of a file with up to four of them changed, cut off, put in, or taken from elsewhere in it."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        action = draw(st.sampled_from(["flip", "put in", "cut", "take", "number"]))
        if action == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "put in":
            data[at:at] = draw(st.binary(max_size=9))
        elif action == "cut":
            del data[at : at + draw(st.integers(1, 64) | st.just(len(data)))]
        elif action == "take":
            start = draw(st.integers(0, max(len(data) - 1, 0)))
            data[at : at + 16] = data[start : start + 16]
        else:
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from([0, 1, 2**15, 2**31, 2**63, 2**64 - 1])) % 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
    return bytes(data)


@st.composite
def json_files(draw: st.DrawFn, valid: Any) -> bytes:
    """The bytes of a JSON file that was `valid` once, or never."""
    kind = draw(st.sampled_from(["changed", "changed", "changed", "changed", "bytes", "other", "noise", "encoding"]))
    if kind == "changed":
        return json_text(draw(changed(valid))).encode()
    if kind == "bytes":
        return draw(changed_bytes(json.dumps(valid).encode()))
    if kind == "other":
        return json_text(draw(json_values())).encode()
    if kind == "noise":
        return draw(st.binary(max_size=64))
    encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "latin-1"]))
    text = json.dumps({**valid, "é": "ÿ"} if isinstance(valid, dict) else valid, ensure_ascii=False)
    return text.encode(encoding, errors="replace")
