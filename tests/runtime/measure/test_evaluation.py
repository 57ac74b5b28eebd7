"""Quality: the numbers of the definitions, whatever the pieces, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure import scoring
from gecko_mlc.runtime.measure.evaluation import Mean, evaluate
from gecko_mlc.runtime.measure.scoring import batches, log_softmax, score_continuations
from gecko_mlc.runtime.state.slots import slots_of
from gecko_mlc.runtime.text.long_text import Piece

TEXT = "It was a bright morning; the king had slept. " * 3


class Letters:
    """A tokenizer of one token a byte: the letter's place in the alphabet."""

    def encode_with_places(self, text: str, begins: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        return [ord(c) % 53 for c in text], [(i, i + 1) for i in range(len(text))]

    def vocabulary(self) -> dict[str, int]:
        return {chr(i + 53): i for i in range(53)}


@pytest.fixture
def model(engine: Callable[..., Engine]) -> Callable[..., Any]:
    """A model of random weights: (seed of the weights, first token of a stream, the tokenizer)."""

    def build(seed: int = 0, bos: int | None = None, tokenizer: Any = None) -> Any:
        config = small_config(num_layers=1)
        return SimpleNamespace(
            engine=engine(config, random_parameters(config, seed)),
            tokenizer=tokenizer or Letters(),
            folder=Path("some") / f"model-{seed}",
            chat_config=SimpleNamespace(quantization="q0f32"),
            beginning=lambda: [] if bos is None else [bos],
        )

    return build


def logits(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [n, O] before each token that is predicted, and those tokens, in one go."""
    ids = [*model.beginning(), *(ord(c) % 53 for c in TEXT)]
    model.engine.reset(0)
    return log_softmax(model.engine.extend_logits(0, ids[:-1])), np.array(ids[1:])


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("block", [1, 1000])
def test_perplexity(model: Callable[..., Any], bos: int | None, block: int) -> None:
    """Every token but a first one that nothing precedes is predicted, from all before it."""
    m = model(bos=bos)
    distributions, targets = logits(m)
    nats = -distributions[np.arange(len(targets)), targets]
    seen: list[int] = []
    report = evaluate(m, [TEXT[i : i + block] for i in range(0, len(TEXT), block)], progress=seen.append)
    assert (report.tokens, report.bytes) == (len(targets), len(targets))
    assert report.perplexity.mean == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    error = nats.std(ddof=1) / np.sqrt(len(nats))
    assert report.perplexity.error == pytest.approx(report.perplexity.mean * error, rel=1e-4)
    assert report.nats_per_byte == pytest.approx(nats.mean(), rel=1e-5)
    assert report.bits_per_byte == pytest.approx(report.nats_per_byte / np.log(2))
    assert report.complete
    assert seen == sorted(seen)
    assert seen[-1] == report.bytes


@pytest.mark.parametrize("most", [2**22, 3 * 53, 1])
def test_comparison(model: Callable[..., Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few logits are on the host at a time."""
    monkeypatch.setattr(scoring, "MAX_LOGITS", most)
    m, other = model(0), model(1)
    ours, targets = logits(m)
    theirs, _ = logits(other)
    kl = (np.exp(theirs) * (theirs - ours)).sum(-1)
    rows = np.arange(len(targets))
    report = evaluate(m, [TEXT], other)
    assert report.comparison is not None
    c = report.comparison
    assert (c.baseline, c.baseline_quantization) == ("model-1", "q0f32")
    assert c.kl_divergence.mean == pytest.approx(kl.mean(), rel=1e-4)
    assert c.kl_divergence.error == pytest.approx(kl.std(ddof=1) / np.sqrt(len(kl)), rel=1e-3)
    assert c.top1_agreement == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean())
    assert c.baseline_perplexity == pytest.approx(np.exp(-theirs[rows, targets].mean()), rel=1e-5)
    assert c.perplexity_ratio.mean == pytest.approx(report.perplexity.mean / c.baseline_perplexity)
    assert report.perplexity.mean == pytest.approx(evaluate(m, [TEXT]).perplexity.mean, rel=1e-6)


def test_a_model_beside_itself(model: Callable[..., Any]) -> None:
    c = evaluate(model(), [TEXT], model()).comparison
    assert c is not None
    assert (c.perplexity_ratio.mean, c.kl_divergence.mean, c.top1_agreement) == (1.0, 0.0, 1.0)


def test_an_interrupt_ends_with_what_was_measured(model: Callable[..., Any]) -> None:
    answers = iter([False, False, True])
    report = evaluate(model(), [TEXT], interrupted=lambda: next(answers))
    assert not report.complete
    assert report.tokens == 2 * 8
    with pytest.raises(KeyboardInterrupt):
        evaluate(model(), [TEXT], interrupted=lambda: True)


@pytest.mark.parametrize("text", ["", "x"])
def test_nothing_to_predict(model: Callable[..., Any], text: str) -> None:
    with pytest.raises(GeckoError, match="no token to predict"):
        evaluate(model(), [text])


def test_a_baseline_of_other_tokens_is_refused(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Others(Letters):
        def vocabulary(self) -> dict[str, int]:
            return {**super().vocabulary(), "A": 5}

    with pytest.raises(GeckoError, match="'A' is 5 there and 12 here; KL needs the same tokens"):
        evaluate(model(), [TEXT], model(1, tokenizer=Others()))
    other = model(1)
    monkeypatch.setattr(other.engine, "num_outputs", 54)
    with pytest.raises(GeckoError, match=r"has logits of 54 tokens, .* of 53"):
        evaluate(model(), [TEXT], other)


def test_few_tokens_say_nothing_of_the_error(model: Callable[..., Any]) -> None:
    few, enough = (evaluate(model(), [TEXT[:n]]).perplexity for n in (30, 31))
    assert (few.error, enough.error is None) == (None, False)


def test_a_dialogue_of_the_same_slot_goes_on(model: Callable[..., Any]) -> None:
    m = model()
    lease = slots_of(m.engine).lease()
    with lease as slot:
        m.engine.extend(slot, [3, 1, 4])
        before = m.engine.logits(slot).tolist()
    for baseline in (None, model(1), m):
        evaluate(m, [TEXT], baseline)
        with lease as slot:
            assert (m.engine.positions[slot], m.engine.logits(slot).tolist()) == (3, before)


def test_calls_are_of_one_size() -> None:
    pieces = [Piece([1, 2, 3], [1, 1, 4]), Piece([], []), Piece([4, 5, 6, 7], [2, 2, 2, 2])]
    assert list(batches(pieces, [9], 3)) == [([9, 1, 2], [1, 2, 3], 6), ([3, 4, 5], [4, 5, 6], 6), ([6], [7], 2)]
    assert list(batches(pieces, [], 6)) == [([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7], 13)]
    assert list(batches([Piece([1], [1])], [], 3)) == []


@pytest.mark.parametrize("slots", [1, 2])
def test_continuations_of_one_context(
    engine: Callable[..., Engine], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each had been consumed by itself; with a second slot the context is consumed once."""
    config = small_config(num_layers=1)
    e = engine(config, random_parameters(config), slots=slots)
    context = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    consumed: list[int] = []
    extend = e.extend
    monkeypatch.setattr(e, "extend", lambda slot, ids: (consumed.append(len(ids)), extend(slot, ids)))
    e.reset(0)
    extend(0, context)
    likeliest = int(e.logits(0).argmax())
    continuations = [[7], [likeliest], [8, 2, 8], [likeliest, 1], list(range(20))]
    found = list(score_continuations(e, context, continuations))
    assert sum(consumed) == len(context) * (1 if slots == 2 else 3)
    for ids, (total, greedy) in zip(continuations, found, strict=True):
        e.reset(0)
        before = log_softmax(e.extend_logits(0, [*context, *ids[:-1]]))[len(context) - 1 :]
        assert total == pytest.approx(before[np.arange(len(ids)), ids].sum(), rel=1e-5)
        assert greedy == (before.argmax(-1).tolist() == ids)
    assert [greedy for _, greedy in found[:2]] == [False, True]


def test_means_of_a_stream_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000).astype(np.float32)
    mean = Mean()
    for part in np.array_split(values, 7):
        mean.add(part)
    assert mean.mean == pytest.approx(values.mean(dtype=np.float64))
    assert mean.error == pytest.approx(values.std(ddof=1, dtype=np.float64) / np.sqrt(1000))
