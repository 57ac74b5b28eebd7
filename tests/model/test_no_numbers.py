"""A model whose logits are no numbers after one of its tokens: whoever runs it is told, and nothing else is harmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import LogitsError
from gecko_mlc.formats.library import NO_TOKEN
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure import bench
from gecko_mlc.runtime.measure.ceilings import Ceilings
from gecko_mlc.runtime.measure.evaluation import evaluate
from gecko_mlc.runtime.measure.scoring import score_continuations

BAD, GOOD = 7, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
TOKENS = [*GOOD, BAD, 8]


class Ids:
    """A tokenizer of one token a character: its code."""

    def encode_with_places(self, text: str, *_: Any) -> tuple[list[int], list[tuple[int, int]]]:
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]

    def vocabulary(self) -> dict[str, int]:
        return {}


TEXT = "".join(map(chr, TOKENS))


@pytest.fixture(params=[np.nan, np.inf, 3e38])
def bad(engine: Callable[..., Engine], request: pytest.FixtureRequest) -> Engine:
    """One that is sick of the token `BAD`: a NaN or an infinity in its row, or what overflows on its way."""
    config = small_config(num_layers=1)
    parameters = random_parameters(config)
    parameters["embed.weight"][BAD] = request.param
    return engine(config, parameters)


def model_of(engine: Engine) -> Any:
    return SimpleNamespace(
        engine=engine,
        tokenizer=Ids(),
        folder=Path("some"),
        chat_config=SimpleNamespace(quantization="q0f32"),
        beginning=list,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("alone", [True, False])
def test_no_token_is_drawn(bad: Engine, temperature: float, alone: bool) -> None:
    """Neither in the slot's next step, nor read out of bounds; a slot that was reset is as good as new."""
    bad.reset(0)
    bad.extend(0, GOOD)
    expected = bad.logits(0)
    bad.reset(0)
    bad.set_sampling(0, Sampling(temperature=temperature, top_p=0.9, repetition_penalty=1.2), 0)
    for piece in [[i] for i in TOKENS[:-1]] if alone else [TOKENS[:-1]]:
        bad.extend(0, piece)
    bad.sample([0])
    assert bad.fetch_tokens([0])() == [NO_TOKEN]
    with pytest.raises(LogitsError, match=r"the logits after token 11 are no numbers: .* convert with q0f32 or q0bf16"):
        bad.token(0)
    bad.step([0])
    with pytest.raises(LogitsError, match="after token 12 are"):
        bad.token(0)
    bad.reset(0)
    bad.extend(0, GOOD)
    np.testing.assert_array_equal(bad.logits(0), expected)


def test_whoever_measures_is_told(bad: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the call that it is part of, what precedes it may be no number either.
    message = "the logits after token (9|10|11) are no numbers"
    with pytest.raises(LogitsError, match=message):
        evaluate(model_of(bad), [TEXT])
    with pytest.raises(LogitsError, match=message):
        evaluate(model_of(bad), [TEXT], model_of(bad))
    with pytest.raises(LogitsError, match=message):
        list(score_continuations(bad, GOOD, [[2], [BAD, 8, 8]]))
    with pytest.raises(LogitsError, match=message):
        list(score_continuations(bad, [*GOOD, BAD], [[2]]))
    limits = Ceilings(memory_gb_per_second=1, matmul_gflop_per_second=1)
    monkeypatch.setattr(bench, "Machine", lambda: SimpleNamespace(measure=lambda: limits))
    monkeypatch.setattr(bench.Stream, "pieces", lambda self, start, count: [TOKENS[:count]] if count else [])
    with pytest.raises(LogitsError, match=message):
        bench.run(bad, "bad", 11, 0)
