"""Options of a generation: what is accepted, and what is wrong with what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel

from gecko_mlc.api import Conversation, GeckoError, GenerationOptions, Sampling, Template, load_model
from gecko_mlc.formats.errors import OptionError

MODEL = FakeModel(FakeEngine())
NAN = float("nan")


def test_sampling_is_changed_by_its_own_names() -> None:
    options = MODEL.options(temperature=0, top_k=5, max_tokens=3)
    assert (options.sampling.temperature, options.sampling.top_k, options.max_tokens) == (0, 5, 3)
    assert options.sampling.top_p == MODEL.default_sampling().top_p
    assert GenerationOptions(sampling=Sampling(top_k=7), temperature=1) == GenerationOptions(
        sampling=Sampling(top_k=7, temperature=1)
    )
    changed = options.model_copy(update={"temperature": 0.5})
    assert (changed.sampling.temperature, changed.sampling.top_k) == (0.5, 5)


def test_one_stop_string_may_be_given_as_it_is() -> None:
    assert MODEL.options(stop="x").stop == MODEL.options(stop=["x"]).stop == ("x",)


def test_a_seed_is_the_same_unless_a_random_one_is_asked_for() -> None:
    assert MODEL.options() == MODEL.options()
    seeds = {MODEL.options(seed=None).seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert MODEL.options(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize("make", [MODEL.options, GenerationOptions, MODEL.options().model_copy])
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("temprature", 0, "did you mean temperature?"),
        ("max_token", 3, "did you mean max_tokens?"),
        ("stops", "x", "did you mean stop?"),
        ("beams", 2, "expected sampling, seed, max_tokens, stop, stop_tokens, temperature"),
        ("max_tokens", -1, "should be greater than or equal to 1, got -1"),
        ("max_tokens", 2.5, "got 2.5"),
        ("temperature", NAN, "should be a finite number, got nan"),
        ("temperature", "hot", "should be a valid number"),
        ("top_p", 0, "should be greater than 0, got 0"),
        ("seed", -1, "should be greater than or equal to 0"),
        ("seed", 2**64, "should be less than 18446744073709551616"),
        ("stop", 5, "got 5"),
        ("stop_tokens", "end", "got 'end'"),
        ("sampling", "greedy", "got 'greedy'"),
        ("sampling", None, "got None"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    make: Callable[..., Any], option: str, value: Any, reason: str
) -> None:
    with pytest.raises(OptionError) as error:
        make(update={option: value}) if make.__name__ == "model_copy" else make(**{option: value})
    assert error.value.option == option
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Sampling(temperature=-1),
        lambda: Sampling(max_tokens=3),
        lambda: GenerationOptions(sampling={"temprature": 0}),
        lambda: setattr(MODEL.options(), "seed", 5),
        lambda: Template(),
        lambda: Template(name="mine", role={"user": "U"}),
        lambda: Template(name="mine", seps=[]),
        lambda: Template(name=5),
        lambda: MODEL.generate(5),
        lambda: MODEL.generate(None),
        lambda: MODEL.generate("x", {"temperature": 0}),
        lambda: MODEL.generate("x", Sampling()),
        lambda: MODEL.generate("x", slot="first"),
        lambda: Conversation(MODEL).say(b"x"),
        lambda: Conversation(MODEL).say("x", {"temperature": 0}),
        lambda: Conversation(MODEL, slot=-1),
        lambda: load_model(5),
        lambda: load_model("gecko-demo", 5),
        lambda: load_model("gecko-demo", device="vulkan"),
        lambda: load_model("gecko-demo", device=None),
        lambda: load_model("gecko-demo", "there.so", device="vulkan"),
        lambda: load_model("gecko-demo", state_dtype="float8"),
        lambda: load_model("gecko-demo", slots=0),
        lambda: load_model("gecko-demo", slots="two"),
    ],
)
def test_all_that_is_wrong_is_one_class_of_errors(wrong: Callable[[], object]) -> None:
    with pytest.raises(GeckoError):
        wrong()


def test_files_have_their_own_errors() -> None:
    """Which say of what file they are: other programs' templates may hold more than ours."""
    assert Template.model_validate({"name": "theirs", "offset": 0}) == Template(name="theirs")
    with pytest.raises(ValidationError):
        Template.model_validate({"roles": {}})


def test_a_conversation_needs_no_options() -> None:
    model = FakeModel(FakeEngine(vocabulary=list(range(97, 100)), chunk_size=64))
    assert "".join(Conversation(model).say("x")) == "".join(Conversation(model).say("x", model.options()))


def test_two_answers_in_one_slot_that_are_read_in_turn_are_each_as_if_alone() -> None:
    model = FakeModel(FakeEngine(vocabulary=list(range(97, 100)), chunk_size=64))
    options = model.options(max_tokens=8)
    alone = ["".join(model.generate(prompt, options)) for prompt in ("x", "y")]
    both = [model.generate(prompt, options, slot=0) for prompt in ("x", "y")]
    said = ["", ""]
    for _ in range(8):
        said = [text + next(answer, "") for text, answer in zip(said, both, strict=True)]
    assert said == alone


def test_progress_of_a_prompt_is_told() -> None:
    answer = FakeModel(FakeEngine(chunk_size=8)).generate("x" * 20)
    told: list[tuple[int, int]] = []
    answer.stream.progress = lambda done, total: told.append((done, total))
    next(answer, None)
    assert told == [(8, 20), (16, 20), (20, 20)]
