"""Dialogues: the state says what the template says of what was said, whatever ended an answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokens import BOS, END, ids, small_tokenizer

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.templates import Template
from gecko_mlc.runtime.conversation import Conversation
from gecko_mlc.runtime.generate.options import GenerationOptions

TOKENIZER = small_tokenizer()
OPTIONS = GenerationOptions(stop_tokens=ids(END))


def text(tokens: Sequence[int]) -> str:
    """With special tokens."""
    return str(TOKENIZER._tokenizer.decode(list(tokens), skip_special_tokens=False))


class BareEngine:
    """The least that a conversation takes: it draws a script."""

    chunk_size = 128

    def __init__(self, script: list[int]) -> None:
        self.script, self.seen, self.now = script, list[int](), 0

    def reset(self, slot: int) -> None:
        self.seen = []

    def set_sampling(self, *rest: Any) -> None:
        pass

    def extend(self, slot: int, tokens: list[int]) -> None:
        self.seen += tokens

    def sample(self, slots: list[int]) -> None:
        self.now = self.script.pop(0)

    def token(self, slot: int) -> int:
        return self.now

    def decode(self, slots: list[int]) -> None:
        self.seen.append(self.now)


def template(separator: str, stop: str) -> Template:
    return Template(
        name="", roles={"user": "U", "assistant": "A"}, seps=["|", separator], stop_str=[stop], system_template=BOS
    )


@pytest.mark.parametrize("engine_type", ["bare", "waits", "runs ahead"])
@pytest.mark.parametrize(
    ("separator", "stop", "drawn"),
    [
        ("\n\n", "\n\n", ["x", "\n", "\n"]),
        ("\n\n", "\n\n", ["x", "\n\n"]),
        ("\n\n", "\n\n", ["x", "b\n", "\n"]),
        (f"{END}\n", END, ["x", END]),
        (f"{END}\n", END, ["x", *"<|im_end|>"]),
        (f"{END}\n", "END", ["x", "EN", "D"]),
        ("\n", "END", ["x", "END"]),
        ("END!", "END", ["x", "EN", "D"]),
    ],
)
def test_the_state_is_what_the_template_says(separator: str, stop: str, drawn: list[str], engine_type: str) -> None:
    """After an answer that a stop string ended, of whatever tokens, and after the turn that follows."""
    script = [*ids(*drawn), *ids("a", *stop if stop != END else [END])]
    if engine_type == "bare":
        engine: Any = BareEngine(script)
    else:
        engine = FakeEngine(script, ids("a"), asynchronous=engine_type == "runs ahead")
    model = FakeModel(engine, template(separator, stop))
    talk = Conversation(model)
    answer = "".join(talk.say("hi", GenerationOptions()))
    assert answer == {"b\n": "xb"}.get(drawn[1], "x")
    engine.script = [*ids("a"), *TOKENIZER.encode(stop, special=True)]
    engine._generations = 0
    assert "".join(talk.say("so", GenerationOptions())) == "a"
    seen = engine.seen if engine_type == "bare" else engine.states[0].seen
    whole = text(seen)
    begin = f"{BOS}Uhi|A{answer}{separator}Uso|A"
    assert whole.startswith(begin)
    # Of the second answer, and of what may follow it, the state has seen a part.
    assert (begin + f"a{separator}").startswith(whole)


def test_a_message_that_was_not_consumed_was_not_said() -> None:
    engine = FakeEngine(ids("x", END), ids("a"), chunk_size=4)
    talk = Conversation(FakeModel(engine, template("\n", "\n")))
    asked = iter([False, True])
    assert list(talk.say("a long message", OPTIONS, lambda: next(asked))) == []
    assert talk.tokens == 0
    talk.say("never asked for", OPTIONS)
    engine.script, engine._generations = ids("x", END), 0
    assert "".join(talk.say("hi", OPTIONS)) == "x"
    assert text(engine.states[0].seen) == f"{BOS}Uhi|Ax"


def test_an_answer_that_nobody_reads_to_its_end_ends_there() -> None:
    engine = FakeEngine(ids(*"abxabxabx", END), ids("a"))
    talk = Conversation(FakeModel(engine, template("\n", "\n")))
    answer = talk.say("hi", OPTIONS)
    shown = "".join(itertools.islice(answer, 4))
    "".join(talk.say("so", OPTIONS))
    assert text(engine.states[0].seen).startswith(f"{BOS}Uhi|A{shown}\nUso|A")


def test_generate_leaves_a_conversation_alone() -> None:
    """And two conversations each other, with one slot for all."""
    engine = FakeEngine([], ids("a", "b", "x"))
    model = FakeModel(engine, template("\n", "\n"))
    options = GenerationOptions(max_tokens=3)

    def dialogue() -> list[str]:
        talk = Conversation(model)
        return ["".join(talk.say(message, options)) for message in "abc"]

    expected = dialogue()
    first, second = Conversation(model), Conversation(model)
    answers = []
    for message in "abc":
        answers.append("".join(first.say(message, options)))
        "".join(model.generate("b", options))
        "".join(second.say(message + "x", options))
    assert answers == expected


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(GeckoError, match="the message is empty"):
        Conversation(FakeModel(FakeEngine())).say(" \n", OPTIONS)
