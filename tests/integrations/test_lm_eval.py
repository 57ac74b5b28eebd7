"""The adapter for lm-evaluation-harness, with the harness where it is installed, else with its base class in short."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.scheduler import Stream
from gecko_mlc.runtime.measure.scoring import log_softmax
from gecko_mlc.runtime.state.slots import slots_of

INSTALLED = importlib.util.find_spec("lm_eval") is not None
EOS = 0


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gecko_mlc.integrations.lm_eval", raising=False)
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GeckoError, match=r"no lm_eval\S* here: pip install 'gecko-mlc\[lm-eval\]'"):
        importlib.import_module("gecko_mlc.integrations.lm_eval")


@pytest.mark.parametrize("missing", ["lm_eval", "mlc_llm"])
def test_as_a_command_it_says_so_too(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"gecko_mlc.integrations.{missing}", raising=False)
    for name in (missing, f"{missing}.api", f"{missing}.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit, match=rf"error: there is no {missing}\S* here: "):
        runpy.run_module(f"gecko_mlc.integrations.{missing}", run_name="__main__")


class TemplateLM:
    """What of the harness's class the adapter stands on."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *what: None)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens(  # type: ignore[attr-defined, no-any-return]
            [(p, self.tok_encode(p[0]), self.tok_encode(p[1], add_special_tokens=False)) for p in pairs]  # type: ignore[attr-defined]
        )


class Letters:
    """A tokenizer of one token a character."""

    bytes: ClassVar[dict[int, int]] = {}

    def encode(self, text: str, special: bool = False, begins: bool = True) -> list[int]:
        return [ord(c) % 53 for c in text]

    def has_text(self, token: int) -> bool:
        return True

    def special_text(self, token: int) -> str | None:
        return None

    def encode_with_places(self, text: str, begins: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(53 + i) for i in ids)


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    """The adapter's module."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
            modules["lm_eval.api.model"].TemplateLM = TemplateLM  # type: ignore[attr-defined]
            registry = modules["lm_eval.api.registry"] = ModuleType("lm_eval.api.registry")
            registry.register_model = lambda name: lambda kind: kind  # type: ignore[attr-defined]
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
        yield importlib.import_module("gecko_mlc.integrations.lm_eval")
    if not INSTALLED:
        del sys.modules["gecko_mlc.integrations.lm_eval"]


@pytest.fixture
def model(engine: Callable[..., Engine]) -> Any:
    config, tokenizer = small_config(num_layers=1), Letters()
    made = engine(config, random_parameters(config), slots=2)
    return SimpleNamespace(
        engine=made,
        tokenizer=tokenizer,
        generate_ids=lambda ids, options: Generation(Stream(slots_of(made).lease(), tokenizer, ids, options)),
        folder=Path("model"),
        chat_config=SimpleNamespace(eos_token_id=[EOS, 7]),
        beginning=list,
        options=lambda **changes: GenerationOptions(**{"stop_tokens": frozenset([EOS]), **changes}),
    )


@pytest.fixture
def lm(adapter: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter over a small model of random weights."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(adapter, "load_model", lambda *arguments, **more: (asked.update(a=arguments, m=more), model)[1])
    lm = adapter.GeckoLM("some-model", device="cuda:0", batch_size=8)
    # The harness's default device is no wish; a context's state needs a slot beside the one that goes on.
    assert asked["a"][2] == "auto"
    assert asked["m"]["slots"] == 2
    return lm


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def scores(model: Any, ids: list[int]) -> np.ndarray:
    """Log-probabilities [n, O] before each of the ids but the first."""
    model.engine.reset(0)
    return log_softmax(model.engine.extend_logits(0, ids[:-1]))


def test_loglikelihood(lm: Any, model: Any) -> None:
    """In the order asked; contexts may come again, be long, or be empty."""
    long = "abc " * 20 + "d"
    asked = [("hello", " there"), (long, " x"), ("hello", " you"), ("", "hi"), (long, " and more")]
    for (context, continuation), (total, greedy) in zip(asked, lm.loglikelihood(requests(*asked)), strict=True):
        before = model.tokenizer.encode(context) or [EOS]
        ids = model.tokenizer.encode(continuation)
        found = scores(model, [*before, *ids])[len(before) - 1 :]
        assert total == pytest.approx(found[np.arange(len(ids)), ids].sum(), rel=1e-5)
        assert greedy == (found.argmax(-1).tolist() == ids)


def test_rolling_loglikelihood(lm: Any, model: Any) -> None:
    """A document is one stream, however long."""
    documents = ["short", "a much longer text. " * 30]
    for text, total in zip(documents, lm.loglikelihood_rolling(requests(*((d,) for d in documents))), strict=True):
        ids = model.tokenizer.encode(text)
        found = scores(model, [EOS, *ids])
        assert total == pytest.approx(found[np.arange(len(ids)), ids].sum(), rel=1e-5)


def test_generate_until(lm: Any, model: Any) -> None:
    """Greedy, unless told otherwise; up to a stop string or the most tokens."""
    (text,) = lm.generate_until(requests(("hello", {"max_gen_toks": 12})))
    ids = model.tokenizer.encode("hello")
    for letter in text:
        assert model.tokenizer.encode(letter) == [scores(model, [*ids, 0])[-1].argmax()]
        ids += model.tokenizer.encode(letter)
    assert 0 < len(text) <= 12
    stop = text[len(text) // 2 :]
    options = [{"until": stop}, {"until": [stop, "never"], "do_sample": False, "temperature": 0.7, "num_beams": 1}]
    assert lm.generate_until(requests(*(("hello", o) for o in options))) == [text[: text.find(stop)]] * 2
    sampled = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    # Each request has a seed of its own.
    first, second = lm.generate_until(requests(("hello", sampled), ("hello", sampled)))
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beams": 4}, "beams: no such option"), ({"num_beams": 4}, "num_beams"), ({"top_p": -1}, "top_p: should be")],
)
def test_unknown_generation_options_are_refused(lm: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GeckoError, match=message):
        lm.generate_until(requests(("hello", options)))


def test_what_begins_a_text(lm: Any, model: Any) -> None:
    assert (lm.eot_token_id, lm.prefix_token_id) == (EOS, EOS)
    model.beginning = lambda: [5]
    assert lm.prefix_token_id == 5
    assert lm.tok_encode("a") == [5, *model.tokenizer.encode("a")]
    assert lm.tok_encode("a", add_special_tokens=False) == model.tokenizer.encode("a")
    model.chat_config.eos_token_id = None
    with pytest.raises(GeckoError, match="eos_token_id is missing"):
        lm.eot_token_id  # noqa: B018
