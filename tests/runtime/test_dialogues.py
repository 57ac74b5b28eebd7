"""Any dialogue, with any tokenizer: what the state has consumed is what the template says of what was shown."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokenizer_kinds import BOS, END, EOS, tokenizer

from gecko_mlc.formats.templates import Template
from gecko_mlc.runtime.conversation import Conversation
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.text.stream import TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer

KINDS = ("gpt-neox", "llama-3", "llama-2", "metaspace first")
# Parts of stop strings, of separators and of characters, and what holds some of those.
TEXTS = ("a", " ", "\n", "\n\n", " the", "the king", "🦎", "é", "!", "<|im_end", "Hello")
SEPARATORS = ("\n", "\n\n", f"{END}\n", END, f" the{END}", "", " ", "é\n")
STOPS = ("\n", "\n\n", END, f"\n{END}", f"a{END}", "the king", "king\n", "é", "🦎", " ", "aa", "a\na\n", "!")


def text_of(made: Tokenizer, tokens: list[int]) -> str:
    """With special tokens."""
    stream, text = TextStream(made), ""
    for token in tokens:
        special = made.special_text(token)
        text += stream.push(token) if special is None else stream.finish() + special
    return text + stream.finish()


def vocabulary(made: Tokenizer) -> list[int]:
    ids = [i for text in TEXTS for i in made.encode(text, begins=False)]
    return [*ids, *made.encode(f"{END}{EOS}", special=True)]


class Breaking(FakeEngine):
    """Reading the `break_at`-th draw is interrupted."""

    break_at = -1

    def fetch_tokens(self, slots: Any) -> Any:
        read = super().fetch_tokens(slots)
        self.break_at -= 1
        if self.break_at != 0:
            return read

        def interrupted() -> list[int]:
            raise KeyboardInterrupt

        return interrupted


templates = st.builds(
    Template,
    name=st.just(""),
    system_template=st.sampled_from(["", BOS, f"{BOS}the king", "Hello"]),
    roles=st.just({"user": "U:", "assistant": "A:"}),
    role_content_sep=st.just(" "),
    seps=st.tuples(st.just("\n"), st.sampled_from(SEPARATORS)).map(list),
    stop_str=st.lists(st.sampled_from(STOPS), max_size=3),
)


class Turn(NamedTuple):
    """A message, what is wanted of its answer, and how that is left: at the `count`-th piece or so."""

    message: str
    max_tokens: int
    stop: list[str]
    ends_with_text: bool
    way: str
    count: int


turns = st.builds(
    Turn,
    st.sampled_from(["Hello", " the king", BOS, "é"]),
    st.integers(1, 12),
    st.lists(st.sampled_from(STOPS), max_size=2),
    st.booleans(),
    st.sampled_from(["read", "left", "interrupted", "exception"]),
    st.integers(1, 8),
)


def answer(talk: Conversation, engine: Breaking, turn: Turn, stop_tokens: list[int]) -> tuple[Generation, str]:
    """The answer, and what of it was shown."""
    options = GenerationOptions(max_tokens=turn.max_tokens, stop=turn.stop, stop_tokens=stop_tokens)
    asked = itertools.count()
    stopped = (lambda: next(asked) > turn.count + 2) if turn.way == "interrupted" else bool
    generation, shown = talk.say(turn.message, options, stopped), ""
    engine.break_at = turn.count if turn.way == "exception" else -1
    with contextlib.suppress(KeyboardInterrupt):
        for piece in itertools.islice(generation, turn.count if turn.way == "left" else None):
            shown += piece
    engine.break_at = -1
    return generation, shown


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asynchronous", [True, False])
@settings(deadline=None, max_examples=60)
@given(
    template=templates,
    dialogue=st.lists(turns, min_size=1, max_size=3),
    chunk=st.sampled_from([4, 8, 64]),
    tile=st.sampled_from([2, 4]),
    data=st.data(),
)
def test_any_dialogue(
    kind: str, asynchronous: bool, template: Template, dialogue: list[Turn], chunk: int, tile: int, data: Any
) -> None:
    """Answers end by stop strings that overlap, contain special tokens or end within tokens, by tokens, at the most
    tokens, by an interrupt, an exception, or because nobody reads on."""
    made = tokenizer(kind)
    drawn = vocabulary(made)
    script = data.draw(st.lists(st.sampled_from(drawn), max_size=12))
    engine = Breaking(script, drawn, asynchronous, chunk_size=chunk, tile=tile)
    model = FakeModel(engine, template, made)
    talk, said = Conversation(model), BOS + template.system_template.removeprefix(BOS)
    for turn in dialogue:
        generation, shown = answer(talk, engine, turn, made.encode(EOS, special=True) if turn.ends_with_text else [])
        if generation.stream.undone:
            assert (turn.way, shown) == ("interrupted", "")
            continue
        said += f"U: {turn.message}\nA:{shown}{template.seps[-1]}"
        # A special token in the midst of an answer keeps a stop string from being one.
        if not any(made.special_text(i) for i in generation.tokens):
            assert not any(stop in shown for stop in (*turn.stop, *template.stop_str))
    "".join(talk.say("x", GenerationOptions(max_tokens=1)))
    seen = list(engine.states[0].seen)
    # What an answer shows nothing of: special tokens in its middle.
    text = text_of(made, seen).replace(EOS, "").replace(END, "")
    assert text == f"{said}U: x\nA:".replace(END, "")
    assert seen.count(made.encode(BOS, special=True)[0]) == 1
