"""One exact text: what the demo in fp32 continues a prompt with, greedily, on any CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gecko_mlc.api import Model, Sampling, load_model

TEXT = Path(__file__).parent / "golden" / "demo-greedy.txt"
PROMPT = "It is a truth universally acknowledged"
TOKENS = 256
# CPUs whose vectors differ add up in other orders, which changes a logit by 2e-5 or so.
MARGIN = 1e-3


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GECKO_MLC_HOME", str(home))
        return load_model("gecko-demo", device="cpu")


def test_the_demo_continues_as_it_always_did(model: Model) -> None:
    """Byte for byte."""
    options = model.options(max_tokens=TOKENS, sampling=Sampling(temperature=0), stop_tokens=frozenset())
    text = PROMPT + "".join(model.generate(PROMPT, options))
    assert text.encode() == TEXT.read_bytes()


def test_no_token_of_it_is_a_near_tie(model: Model) -> None:
    """So the text is the same wherever logits are right, and a difference is a fault."""
    model.engine.reset(0)
    logits, margins = model.engine.extend_logits(0, model.encode_prompt(PROMPT))[-1], []
    for _ in range(TOKENS):
        second, first = np.partition(logits, -2)[-2:]
        margins.append(first - second)
        logits = model.engine.extend_logits(0, [int(logits.argmax())])[-1]
    assert min(margins) > MARGIN
