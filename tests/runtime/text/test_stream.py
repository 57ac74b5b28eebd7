"""Streams of ids of every kind of tokenizer: what comes out piece by piece is what decoding all of them gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import KINDS, tokenizer

from gecko_mlc.runtime.text.stream import LONGEST_RUN, TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer

TEXTS = (
    "the king is dead",
    "naïve café, 日本語, и т.д.",
    "👩‍👩‍👧‍👦🦎🏳️‍🌈e\u0301",
    "already broken: \ufffd\ufffd, \ufffd",
    "  two  blanks \n\n and\tlines\n",
)


def streamed(tokenizer: Tokenizer, ids: list[int], before: list[int] = []) -> list[str]:  # noqa: B006
    stream = TextStream(tokenizer, before)
    return [*map(stream.push, ids), stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_ids(kind: str, data: Any) -> None:
    """Also ids that no text has, special ones, and those that the vocabulary has not."""
    made = tokenizer(kind)
    token = st.integers(0, made.size + 3)
    # Most of what is hard is in bytes.
    broken = st.sampled_from([i for text in TEXTS for i in made.encode(text)])
    ids = data.draw(st.lists(st.one_of(token, broken), max_size=60))
    assert "".join(streamed(made, ids)) == made.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_cut_anywhere(kind: str, text: str) -> None:
    """At any token, as where an answer has its most tokens; and what follows the cut, after what came before it."""
    made = tokenizer(kind)
    ids = made.encode(text)
    for end in range(len(ids) + 1):
        assert "".join(streamed(made, ids[:end])) == made.decode(ids[:end])
        if not made.decode(ids[:end]).endswith("\ufffd"):
            assert made.decode(ids[:end]) + "".join(streamed(made, ids[end:], ids[:end])) == made.decode(ids)


@pytest.mark.parametrize("kind", ["gpt-neox", "llama-2"])
def test_no_character_comes_before_it_is_whole(kind: str) -> None:
    made = tokenizer(kind)
    pieces = streamed(made, made.encode("a👩‍👩‍👧‍👦b🦎"))
    assert "".join(pieces) == "a👩‍👩‍👧‍👦b🦎"
    assert not any("\ufffd" in piece for piece in pieces)


def test_each_token_may_end_a_character_and_begin_the_next() -> None:
    made = tokenizer("gpt-neox")
    (token,) = (i for t, i in made.vocabulary().items() if t == "©ð")
    ids = [token] * 100
    pieces = streamed(made, ids)
    assert "".join(pieces) == made.decode(ids)
    # All but what may be the beginning of a character comes at once.
    assert all(pieces[1:-1])


@pytest.mark.parametrize("ending", [b"", b"\xf0\x9f", b"\xff"])
def test_a_long_run_of_byte_tokens(ending: bytes) -> None:
    """In a script of which the vocabulary has only bytes, text goes on coming; only the last of it can be lost."""
    made = tokenizer("llama-2")
    by_byte = {byte: i for i, byte in made.bytes.items()}
    text = "日本語é" * 100
    pieces = streamed(made, [*made.encode("a"), *map(by_byte.__getitem__, text.encode() + ending)])
    whole = "".join(pieces)
    given = whole.rstrip("\ufffd")
    assert f"a{text}".startswith(given)
    held = len(f"a{text}".encode() + ending) - len(given.encode())
    assert len(whole) - len(given) == held
    assert (held == 0) if not ending else (held < LONGEST_RUN + 4)
    assert max(map(len, "".join("x" if piece else " " for piece in pieces).split("x"))) < LONGEST_RUN + 4


@pytest.mark.parametrize("length", [1, 3, LONGEST_RUN, 5 * LONGEST_RUN])
def test_a_run_that_is_not_text(length: int) -> None:
    """Each byte by itself, as soon as that is known; text goes on behind it."""
    made = tokenizer("llama-2")
    by_byte = {byte: i for i, byte in made.bytes.items()}
    ids = [*made.encode("a"), by_byte[0xFF], *[by_byte[0x41]] * length, *made.encode("the king", begins=False)]
    pieces = streamed(made, ids)
    assert "".join(pieces) == made.decode(ids) == "a" + "\ufffd" * (length + 1) + "the king"
    assert all(pieces[2:-1])
