"""The loop over an engine without a model: what is issued ahead, and what is left of it when an answer ends."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.tokens import END, ids, small_tokenizer

from gecko_mlc.formats.errors import LogitsError
from gecko_mlc.formats.library import NO_TOKEN
from gecko_mlc.formats.templates import Template
from gecko_mlc.runtime.conversation import Conversation
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.scheduler import Stream, run
from gecko_mlc.runtime.state.slots import slots_of
from gecko_mlc.runtime.text.stream import TextStream

TOKENIZER = small_tokenizer()
# What is drawn besides: letters, line breaks, a character in two tokens, tokens that hold parts of stop strings.
VOCABULARY = ids("a", "b", "ab", "b\n", "\n", "\n\n", "x", "\xc3", "\xa9", "EN", "D")
SEPARATOR = f"{END}\n\n"
# How answers end: the last tokens, what of their text is shown, the options.
ENDS: dict[str, tuple[list[int], str, dict[str, Any]]] = {
    "stop token": (ids("x", END), "x", {"stop_tokens": ids(END)}),
    "stop token of the separator as text": (ids("x", "\n"), "x", {"stop_tokens": ids("\n")}),
    "stop string of one token": (ids("x", "END"), "x", {"stop": ["END"]}),
    "of two tokens": (ids("x", "EN", "D"), "x", {"stop": ["END"]}),
    "of many tokens": (ids("E", "x", "E", "N", "D"), "Ex", {"stop": ["END"]}),
    "that begins in a token": (ids("x", "b\n", "\n"), "xb", {"stop": ["\n\n"]}),
    "that ends in a token": (ids("x", "a", "b\n"), "x", {"stop": ["ab"]}),
    "within a token": (ids("x", "END"), "xE", {"stop": ["N"]}),
    "after half of one": (ids("\n", "x", "\n", "\n"), "\nx", {"stop": ["\n\n"]}),
    "that is a special token": (ids("x", END), "x", {"stop": [END]}),
    "that contains a special token": (ids("x", "a", END, "b"), "x", {"stop": [f"a{END}b"]}),
    "that ends in a special token": (ids("x", "\n", END), "x", {"stop": [f"\n{END}"]}),
    "a character left unfinished": (ids("x", "\xc3", END), "x\ufffd", {"stop_tokens": ids(END)}),
    "the most tokens": (ids("x", "a", "b"), "xab", {}),
    "the most tokens within a stop string": (ids("x", "EN"), "xEN", {"stop": ["END"]}),
}
PLACES = range(9)  # Of the end in a tile.


def ending(name: str, place: int) -> tuple[list[int], str, GenerationOptions]:
    last, shown, options = ENDS[name]
    script = ids(*"a" * place) + last
    fields = {"max_tokens": len(script) if "most" in name else 99, "seed": 5, **options}
    return script, "a" * place + shown, GenerationOptions(**fields)


def continued(stream: Stream) -> list[int]:
    """The next 64 tokens, after what the state has not seen and an x."""
    prompt = [*stream.pending, *stream.following, *ids("x")]
    generation = Generation(Stream(stream.lease, TOKENIZER, prompt, GenerationOptions(max_tokens=64, seed=6)))
    "".join(generation)
    return generation.tokens


def answer(name: str, place: int, asynchronous: bool, follow: str = SEPARATOR) -> tuple[FakeEngine, Stream, str]:
    script, _, options = ending(name, place)
    engine = FakeEngine(script, VOCABULARY, asynchronous)
    stream = Stream(slots_of(engine).lease(), TOKENIZER, ids("x", "x"), options, follow)
    return engine, stream, "".join(Generation(stream))


def text_of(tokens: list[int]) -> str:
    """With special tokens."""
    stream, text = TextStream(TOKENIZER), ""
    for token in tokens:
        special = TOKENIZER.special_text(token)
        text += stream.push(token) if special is None else stream.finish() + special
    return text + stream.finish()


@pytest.mark.parametrize("name", ENDS)
def test_what_was_drawn_ahead_leaves_no_trace(name: str) -> None:
    """Wherever in a tile an answer ends: text, state, draws and the next 64 tokens are those of a loop that waits."""
    for place, follow in itertools.product(PLACES, (SEPARATOR, "\n\n", "")):
        _, shown, _ = ending(name, place)
        results = []
        for asynchronous in (True, False):
            engine, stream, text = answer(name, place, asynchronous, follow)
            assert text == shown
            drawn = engine.states[0].drawn
            assert drawn == tuple(stream.sequence.tokens[: len(drawn)])
            # The state says what was shown, and what follows, no more.
            whole = [*engine.states[0].seen, *stream.pending, *stream.following]
            assert text_of(whole) == "xx" + shown + follow
            results.append((text, whole, drawn, continued(stream)))
        assert results[0] == results[1]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_answer_that_is_not_read_to_its_end(asynchronous: bool) -> None:
    """The state says what was read, however the loop over it is left."""
    script = ids(*"ab\n\xc3\xa9xE", "\n\n", *"xxEN", "b\n", "x", END)
    options = GenerationOptions(stop=("\n\n\n", "END"), stop_tokens=ids(END), seed=5)
    for read in range(1, 14):
        engine = FakeEngine(script, VOCABULARY, asynchronous)
        stream = Stream(slots_of(engine).lease(), TOKENIZER, ids("x"), options)
        generation = Generation(stream)
        shown = "".join(itertools.islice(generation, read))
        generation.close()
        assert TOKENIZER.decode([*engine.states[0].seen, *stream.pending]) == "x" + shown


def test_a_token_is_read_after_the_next_step_was_issued() -> None:
    engine = FakeEngine(ids(*"abababababab"), VOCABULARY, tile=10**6, chunk_size=64)
    "".join(Generation(Stream(slots_of(engine).lease(), TOKENIZER, ids("x"), GenerationOptions(max_tokens=12))))
    check_ahead(engine.calls)


def check_ahead(calls: list[str]) -> None:
    """But for the first token, before which there is no checkpoint, and the last."""
    steps = sum(call.startswith("step") for call in calls)
    for n in range(2, steps):
        assert calls.index(f"step {n + 1}") < calls.index(f"read {n}")


def test_so_does_a_conversation() -> None:
    engine = FakeEngine(ids(*"abababababab", END), VOCABULARY, tile=10**6, chunk_size=64)
    template = Template(name="", roles={"user": "u", "assistant": "a"}, seps=[SEPARATOR])
    model = SimpleNamespace(
        engine=engine, tokenizer=TOKENIZER, chat_config=SimpleNamespace(conv_template=template), beginning=list
    )
    options = GenerationOptions(stop_tokens=ids(END))
    assert "".join(Conversation(model).say("x", options)) == "ab" * 6
    check_ahead(engine.calls)


def test_a_tile_ends_with_nothing_ahead() -> None:
    """Over its end a state could not be undone: the loop waits there, for two tokens of each tile."""
    engine = FakeEngine(ids("x"), VOCABULARY, tile=8)
    "".join(Generation(Stream(slots_of(engine).lease(), TOKENIZER, ids("x"), GenerationOptions(max_tokens=40))))
    ahead = [f"step {n + 1}" in engine.calls[: engine.calls.index(f"read {n}")] for n in range(1, 40)]
    assert [n for n, early in enumerate(ahead, 1) if not early] == [1, *(n for n in range(7, 40) if n % 8 in (7, 0))]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_streams_in_a_batch_are_each_alone(asynchronous: bool) -> None:
    """Of other lengths, prompts and seeds."""
    options = [GenerationOptions(max_tokens=n, seed=n, stop=("\n\n",)) for n in (3, 30, 17, 1)]
    alone = []
    for i, each in enumerate(options):
        engine = FakeEngine([], VOCABULARY, asynchronous)
        alone.append("".join(Generation(Stream(slots_of(engine).lease(), TOKENIZER, ids(*"x" * (i + 1)), each))))
    engine = FakeEngine([], VOCABULARY, asynchronous, slots=4)
    owners = slots_of(engine)
    streams = [Stream(owners.lease(), TOKENIZER, ids(*"x" * (i + 1)), each) for i, each in enumerate(options)]
    texts = dict.fromkeys(range(4), "")
    for stream, text in run(streams):
        texts[streams.index(stream)] += text
    assert list(texts.values()) == alone


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_batch_that_is_left(asynchronous: bool) -> None:
    """Where one stream's text is given out, other ones' tokens are drawn, and consumed, that were not read yet."""
    for read in range(1, 40):
        engine = FakeEngine([], VOCABULARY, asynchronous, slots=3)
        owners = slots_of(engine)
        streams = [
            Stream(
                owners.lease(), TOKENIZER, ids(*"x" * n), GenerationOptions(max_tokens=20, seed=n, stop=("\n\n", "END"))
            )
            for n in (1, 2, 3)
        ]
        texts = dict.fromkeys(range(3), "")
        loop = run(streams)
        for stream, text in itertools.islice(loop, read):
            texts[streams.index(stream)] += text
        loop.close()
        for n, stream in enumerate(streams):
            slot = stream.lease.slot
            assert slot is not None
            assert text_of([*engine.states[slot].seen, *stream.pending]) == "x" * (n + 1) + texts[n]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_where_no_token_can_be_drawn_an_answer_ends_in_an_error(asynchronous: bool) -> None:
    """The text before it stays, and the state is that of the text."""
    for place in range(6):
        script = [*ids(*"ab\n\xc3"[:place]), NO_TOKEN]
        engine = FakeEngine(script, VOCABULARY, asynchronous)
        stream = Stream(slots_of(engine).lease(), TOKENIZER, ids("x", "x"), GenerationOptions(stop=("\n\n",), seed=5))
        generation, shown = Generation(stream), ""
        with pytest.raises(LogitsError, match=f"the logits after token {2 + len(script) - 1} are no numbers"):
            for text in generation:
                shown += text
        assert shown == TOKENIZER.decode(script[:-1])
        assert generation.finish_reason == "error"
        assert generation.tokens == script[:-1]
        assert TOKENIZER.decode([*engine.states[0].seen, *stream.pending]) == f"xx{shown}"
        assert NO_TOKEN not in engine.states[0].drawn


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_other_streams_of_a_batch_go_on(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for fails in (False, True):
        engine = FakeEngine([], ids("a", "b", "ab"), asynchronous, slots=3)
        sample = engine.sample

        def sample_but_one(slots: list[int], engine: Any = engine, sample: Any = sample) -> None:
            sample(slots)
            state = engine.states[1]
            if 1 in slots and len(state.drawn) == 4:
                engine.states[1] = state._replace(drawn=(*state.drawn[:-1], NO_TOKEN))

        if fails:
            monkeypatch.setattr(engine, "sample", sample_but_one)
        owners = slots_of(engine)
        options = GenerationOptions(max_tokens=12)
        streams = [Stream(owners.lease(), TOKENIZER, ids(*"x" * (i + 1)), options) for i in range(3)]
        shown = ["", "", ""]
        with pytest.raises(LogitsError, match="after token 5 are") if fails else nullcontext():
            for stream, text in run(streams):
                shown[streams.index(stream)] += text
        texts.append(shown)
        assert [stream.sequence.finish_reason for stream in streams] == [
            "length",
            "error" if fails else "length",
            "length",
        ]
    whole, ended = texts
    assert [ended[0], ended[2]] == [whole[0], whole[2]]
    assert whole[1].startswith(ended[1])
    assert len(streams[1].sequence.tokens) == 3


def test_an_interrupted_prompt_was_never_there() -> None:
    """In the first prompt, or in a later one."""
    engine = FakeEngine(ids(*"ab"), VOCABULARY, chunk_size=4)
    lease = slots_of(engine).lease()
    for prompts_before in (0, 1):
        if prompts_before:
            "".join(Generation(Stream(lease, TOKENIZER, ids("x"), GenerationOptions(max_tokens=2))))
        before = engine.states[0].seen
        asked = iter([False, False, True])
        stream = Stream(lease, TOKENIZER, ids(*"x" * 20), GenerationOptions())
        generation = Generation(stream, lambda asked=asked: next(asked))
        assert (list(generation), generation.finish_reason, stream.undone) == ([], "interrupted", True)
        assert engine.states[0].seen == before
