"""Special tokens in a prompt, from the command line."""

from __future__ import annotations

import io
import sys

import pytest
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokens import BOS, END, ids, small_tokenizer

from gecko_mlc import api
from gecko_mlc.cli.app import app

PROMPT = f"{BOS}ab{END}"


@pytest.mark.parametrize(
    ("options", "seen"), [([], small_tokenizer().encode(PROMPT)), (["--special"], ids(BOS, "ab", END))]
)
def test_they_are_text_unless_asked_for(options: list[str], seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(FakeEngine(ids("x", END)))
    monkeypatch.setattr(api, "load_model", lambda *args, **more: model)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    app(["generate", "fake", "--prompt", PROMPT, "--max-tokens", "1", *options], standalone_mode=False)
    assert list(model.engine.states[0].seen) == seen
