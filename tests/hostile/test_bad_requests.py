"""Prompts, options and token ids that cannot be, on the command line and in Python; and odd ones that can."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from typing import Any

import pytest
from support.bad_inputs import Inputs, check_refused
from support.commands import Done
from support.tokens import BOS, END

from gecko_mlc.api import Conversation, GeckoError, Model, load_model

OPTIONS = {
    "--max-tokens": ["-1", "0", str(10**13), str(10**400)],
    "--temperature": ["-1", "nan", "inf", "1e308"],
    "--top-p": ["0", "1.5", "-inf"],
    "--top-k": ["-5", str(2**63)],
    "--min-p": ["-0.1", "2"],
    "--repetition-penalty": ["0", "1e300"],
    "--presence-penalty": ["nan", "-101"],
    "--frequency-penalty": ["101"],
    "--seed": [str(2**64)],
    "--threads": ["0", "-1"],
}


@pytest.mark.parametrize(("option", "value"), [(option, v) for option, values in OPTIONS.items() for v in values])
def test_an_option_out_of_range(option: str, value: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    check_refused(run([*inputs.command("generate"), option, value]), f"error: {option}: should be ")


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        ([], "the list is empty"),
        ([300], "300"),
        ([-1], "-1"),
        ([1, 2**31], str(2**31)),
        ([2**64], "more than 64 bits"),
        ([1.0], "a JSON list of integers"),
        ([True], "a JSON list of integers"),
        ([[1]], "a JSON list of integers"),
        ({"ids": [1]}, "a JSON list of integers"),
    ],
    ids=str,
)
def test_ids_of_no_tokens(ids: Any, line: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    inputs.tokens.write_text(json.dumps(ids))
    check_refused(run(inputs.command("logits")), line)
    assert not (inputs.folder / "out.safetensors").exists()


@pytest.mark.parametrize("split", ["0,3", "-1,4", "1,1", "x", "1" * 5000, ""])
def test_a_split_into_other_tokens(split: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    check_refused(run([*inputs.command("logits"), "--split", split]), "error: --split")


@pytest.mark.parametrize(
    "value", ["max_batch_size=" + "9" * 5000, "max_batch_size=\u00b2", "max_batch_size=-1", "slots=1", "x"]
)
def test_overrides_that_are_none(value: str, inputs: Inputs, run: Callable[..., Done]) -> None:
    check_refused(run([*inputs.command("compile"), "--overrides", value]), "error: --overrides .*: expected key=number")


@pytest.fixture(scope="module")
def model(whole: Inputs) -> Model:
    return load_model(whole.model, whole.library)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 10**6},
        {"logit_bias": {"5": 1.0}},
        {"max_tokens": -1},
        {"max_tokens": 2**63},
        {"temperature": float("nan")},
    ],
    ids=str,
)
def test_options_in_python(changes: dict[str, Any], model: Model) -> None:
    with pytest.raises(GeckoError, match=next(iter(changes))):
        model.options(**changes)


@pytest.mark.parametrize("prompt", ["", None, b"x", 5])
def test_no_prompt(prompt: Any, model: Model) -> None:
    with pytest.raises(GeckoError, match="prompt"):
        model.generate(prompt)


@pytest.mark.parametrize(
    "text", ["\ud800", "a\0b", "\x1b[2J", "\u202e", "\ufffe", "e\u0301" * 99, "\U0001f468\u200d\U0001f467"]
)
def test_odd_text_is_text(text: str, model: Model) -> None:
    options = model.options(max_tokens=2, temperature=0)
    assert len(list(model.generate(text, options).tokens)) == 0
    generation = model.generate(text, options)
    "".join(generation).encode()
    assert generation.finish_reason in ("length", "stop")


@pytest.mark.parametrize("special", [BOS, END])
def test_special_tokens_of_a_user_are_text(special: str, model: Model) -> None:
    ids = model.encode_prompt(f"a{special}b")
    assert model.tokenizer.decode(ids) == f"a{special}b"
    conversation = Conversation(model)
    list(conversation.say(f"a{special}b", model.options(max_tokens=1, temperature=0)))
    assert conversation.tokens > len(special)


def test_a_long_prompt_takes_no_memory_of_its_own(model: Model) -> None:
    """Nothing grows with the tokens that a state has seen."""
    ids = [token % 250 for token in range(20_000)]
    options = model.options(max_tokens=1)
    list(model.generate_ids(ids[:2000], options))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    list(model.generate_ids(ids, options))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17])
def test_any_split_of_a_prompt_gives_its_logits(length: int, inputs: Inputs, run: Callable[..., Done]) -> None:
    """Around every end of a chunk, which is of 8 tokens."""
    from safetensors.numpy import load_file

    inputs.tokens.write_text(json.dumps(list(range(length))))
    results = []
    for split in (str(length), f"1,{length - 1}", f"{length - 1},1", ",".join(["1"] * length)):
        done = run([*inputs.command("logits"), "--split", split])
        assert done.returncode == 0, done.stderr
        results.append(load_file(inputs.folder / "out.safetensors")["logits"])
    assert all(abs(result - results[0]).max() < 2e-5 for result in results)
