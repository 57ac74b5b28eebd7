"""Tokenizer, streams of text, stop strings and conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.templates import TEMPLATES, Template
from gecko_mlc.runtime.text.stop_strings import StopStrings
from gecko_mlc.runtime.text.stream import TextStream
from gecko_mlc.runtime.text.templates import Text, turn
from gecko_mlc.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes and one special token: every other character is split over several tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([], trainer)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, 257)


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 и 🦎🦎", "a\u0301", "\x00\n\t", "né\ud800!"])
def test_characters_come_out_whole(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text.encode("utf-8", "replace").decode()
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_are_no_character_do_not_hold_the_text_up(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    broken = [tokenizer.encode("é")[0]] * 9
    assert "".join(stream.push(i) for i in broken).startswith("\ufffd")


def test_special_tokens_in_a_message_stay_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|end|>", special=True) == [0]
    plain = tokenizer.encode("<|end|>")
    assert 0 not in plain
    assert tokenizer.decode(plain) == "<|end|>"
    assert tokenizer.encode_parts([Text("<|end|>", True), Text("<|end|>", False)]) == [0, *plain]


def test_a_tokenizer_too_large_for_the_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer._tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(GeckoError, match="largest id is 256, but the model's vocabulary is 100"):
        Tokenizer(tmp_path, 100)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(GeckoError, match="not a tokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "found"),
    [
        ([], ["a", "b"], "ab", False),
        (["END"], ["one E", "N", "D two"], "one ", True),
        (["END"], ["one E", "N", "d"], "one ENd", False),
        (["\n\n", "x"], ["a\n", "\nb"], "a", True),
        (["aab"], ["a", "a", "a", "b"], "a", True),
        (["stop"], ["st"], "st", False),
        ([""], ["a"], "a", False),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], text: str, found: bool) -> None:
    matcher = StopStrings(stops)
    out = "".join([matcher.push(piece) for piece in pieces] + [matcher.finish()])
    assert (out, matcher.found) == (text, found)


@settings(deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.lists(st.text("ab", max_size=3), max_size=12))
def test_stop_strings_that_overlap(stops: list[str], pieces: list[str]) -> None:
    """What is out is all that comes before the first of them, and never what may be of one."""
    matcher, text, out = StopStrings(stops), "", ""
    for piece in pieces:
        out += matcher.push(piece)
        text += piece
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            assert (out, matcher.found) == (text[: min(places)], True)
            return
        held = max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        assert out == text[: len(text) - held]
    assert (out + matcher.finish(), matcher.found) == (text, False)


def test_a_turn_adds_only_what_is_new() -> None:
    chatml = TEMPLATES["chatml"]
    first, later = (turn(chatml, "Hi <|im_end|>", first) for first in (True, False))
    assert "".join(p.text for p in first) == (
        "<|im_start|>system\nA conversation between a user and an assistant.<|im_end|>\n"
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    # After the separator, which belongs to the answer before.
    assert "".join(p.text for p in later) == "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert Text("Hi <|im_end|>", False) in first
    assert turn(Template(name="LM"), "just text", True) == [Text("just text", False)]
