"""Text to ids with every kind of tokenizer, at the beginning of a stream and within it."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import BOS, END, EOS, EXACT, KINDS, tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.text.templates import Text
from gecko_mlc.runtime.text.tokenizer import Tokenizer

PLAIN = st.text(st.sampled_from("ab hHello,.\n 🦎é<s>\ufffd"), max_size=12)


@pytest.mark.parametrize("kind", EXACT)
@settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(
        st.tuples(st.one_of(PLAIN, st.sampled_from([BOS, END, f"{END}\n", f"a{EOS}b"])), st.booleans()), max_size=5
    )
)
def test_the_ids_of_parts_are_the_text_of_all(kind: str, parts: list[tuple[str, bool]]) -> None:
    """No blank comes in between, and none is lost, however the text is cut and whatever special tokens are in it."""
    made = tokenizer(kind)
    ids = made.encode_parts([Text(*part) for part in parts])
    shown = ""
    for text, special in parts:
        for token in (BOS, EOS, END) if special else ():
            text = text.replace(token, "")
        shown += text
    # A text that begins with a blank of its own loses it where decoders take the first one for the tokenizer's.
    prefixed = kind.startswith("metaspace") and kind != "metaspace never"
    assert made.decode(ids) == (shown[1:] if prefixed and shown.startswith(" ") else shown)


@pytest.mark.parametrize("kind", [*EXACT, "unigram"])
def test_text_that_begins_a_stream_is_as_the_tokenizer_has_it(kind: str) -> None:
    """Where nothing or special tokens come before it; text that follows is as within a longer one."""
    made = tokenizer(kind)
    library = KINDS[kind]()
    for text in ("the king is dead", "a", ".", "king"):
        own = library.encode(text, add_special_tokens=False).ids
        assert made.encode(text) == own
        (bos,) = made.encode(BOS, special=True)
        assert made.encode(f"{BOS}{text}", special=True) == [bos, *own]
        assert made.encode_parts([Text(BOS, True), Text(text, False)]) == [bos, *own]
        assert made.encode(f"Hello {text}") == [*made.encode("Hello"), *made.encode(f" {text}", begins=False)]


def test_places_are_of_the_text_that_was_given() -> None:
    made = tokenizer("llama-2")
    for text in ("the king", "Hello <tool>the king<tool> is"):
        for begins in (True, False):
            ids, spans = made.encode_with_places(text, begins)
            assert ids == made.encode(text, begins=begins)
            assert [spans[0][0], spans[-1][1]] == [0, len(text)]
            assert all(end >= before for (_, before), (_, end) in itertools.pairwise(spans))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_begins_once(kind: str) -> None:
    """With what the config says, or the post-processor puts there (and not with what it puts at the end)."""
    made = tokenizer(kind)
    beginning = [] if kind == "word ends" else made.encode(BOS, special=True)
    ids = made.encode("Hello")
    assert made.with_beginning(ids) == [*beginning, *ids]
    assert made.with_beginning(made.with_beginning(ids)) == [*beginning, *ids]
    assert made.with_beginning([]) == beginning
    (end,) = made.encode(END, special=True)
    assert made.with_beginning(ids, [end]) == [end, *ids]
    assert made.with_beginning([end, *ids], [end]) == [end, *ids]
    # Plain text that reads like it is none.
    assert made.with_beginning(made.encode(BOS), [end])[0] == end


def test_a_beginning_of_several_tokens(tmp_path: Path) -> None:
    """Of which a config names one, and a template perhaps the last."""
    library = KINDS["llama-3"]()
    first, second, other = (library.token_to_id(token) for token in (END, BOS, EOS))
    library.post_processor = processors.TemplateProcessing(
        single=f"{END} {BOS} $A {EOS}", special_tokens=[(END, first), (BOS, second), (EOS, other)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path)
    for beginning in ([], [first], [second]):
        for ids in ([5], [second, 5], [first, second, 5]):
            assert made.with_beginning(ids, beginning) == [first, second, 5]
    assert made.with_beginning([5], [other]) == [other, 5]


@pytest.mark.parametrize("kind", ["llama-3", "llama-2"])
def test_no_text_is_cut_or_filled(kind: str, tmp_path: Path) -> None:
    """As a tokenizer does that was saved while a training cut its texts."""
    library = KINDS[kind]()
    library.enable_truncation(4)
    library.enable_padding(length=4)
    library.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path)
    assert made.encode("the king is dead") == tokenizer(kind).encode("the king is dead")
    assert made.encode("a") == tokenizer(kind).encode("a")
    assert made.with_beginning([]) == tokenizer(kind).with_beginning([])


def test_added_tokens_that_take_blanks_with_them() -> None:
    """A token that is not special is text; a special one is where it is asked for."""
    made = tokenizer("added tokens")
    text = "a  <left> b <right>  c <both> Norm word words"
    assert made.decode(made.encode(text)).replace(" ", "") == text.replace(" ", "")
    assert made.special_text(made.encode("x <both> y", special=True)[1]) == "<both>"
    assert [made.special_text(i) for i in made.encode("x <both> y")] == [None] * len(made.encode("x <both> y"))


def test_threads_do_not_see_each_others_special_tokens() -> None:
    made = tokenizer("llama-3")
    expected = {special: made.encode(f"a{END}" * 50, special) for special in (True, False)}
    wrong: list[Any] = []

    def encode(special: bool) -> None:
        for _ in range(200):
            if made.encode(f"a{END}" * 50, special) != expected[special]:
                wrong.append(special)

    threads = [threading.Thread(target=encode, args=(special,)) for special in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_text_that_there_are_no_tokens_for(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"hello": 0, BOS: 1}, unk_token="[UNK]"))
    library.add_special_tokens([BOS])
    library.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {BOS}", special_tokens=[(BOS, 1)])
    library.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path)
    assert made.with_beginning(made.encode("hello")) == [1, 0]
    with pytest.raises(GeckoError, match=r"tokenizer\.json: has no tokens for the text: .*UNK"):
        made.encode("good-bye")


@pytest.mark.parametrize("kind", ["roberta", "llama-2", "metaspace always", "metaspace first", "unigram"])
def test_no_blank_within_a_stream(kind: str) -> None:
    made = tokenizer(kind)
    assert made.decode([*made.encode("the"), *made.encode("king", begins=False)]).strip() == "theking"


def test_an_older_files_prefix(tmp_path: Path) -> None:
    """Of before its scheme had a name."""
    KINDS["metaspace always"]().save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    path.write_text(json.dumps(fields))
    made = Tokenizer(tmp_path)
    assert made.decode([*made.encode("the"), *made.encode("king", begins=False)]) == "theking"
