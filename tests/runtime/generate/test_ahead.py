"""Whoever asks for text, the loop issues a step before it reads the token of the one before."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokens import END, ids

from gecko_mlc import api, integrations
from gecko_mlc.cli.app import app

ANSWER = "ababababab"


def generate(model: Any, patch: pytest.MonkeyPatch) -> None:
    run_command(model, patch, ["generate", "fake", "--prompt", "x"])


def chat(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n")))
    run_command(model, patch, ["chat", "fake"])


def interface(model: Any, patch: pytest.MonkeyPatch) -> None:
    assert "".join(model.generate("x")) == ANSWER


def lm_eval(model: Any, patch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        base = type("TemplateLM", (), {})
        module = SimpleNamespace(TemplateLM=base, register_model=lambda name: lambda kind: kind)
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry"):
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "gecko_mlc.integrations.lm_eval", raising=False)
    adapter = importlib.import_module("gecko_mlc.integrations.lm_eval")
    del sys.modules["gecko_mlc.integrations.lm_eval"], integrations.lm_eval
    lm = adapter.GeckoLM.__new__(adapter.GeckoLM)
    lm._model, lm.cache_hook = model, SimpleNamespace(add_partial=lambda *what: None)
    assert lm.generate_until([SimpleNamespace(args=("x", {}))], disable_tqdm=True) == [ANSWER]


def run_command(model: Any, patch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    patch.setattr(api, "load_model", lambda *args, **more: model)
    written = io.StringIO()
    patch.setattr(sys, "stdout", written)
    app(arguments, standalone_mode=False)
    assert written.getvalue() == f"{ANSWER}\n"


@pytest.mark.parametrize("caller", [generate, chat, interface, lm_eval])
def test_a_token_is_read_after_the_next_step_was_issued(
    caller: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the first one, before which nothing can be undone."""
    engine = FakeEngine(ids(*ANSWER, END), ids("x"), tile=10**6, chunk_size=64)
    caller(FakeModel(engine), monkeypatch)
    steps = sum(call.startswith("step") for call in engine.calls)
    assert steps == len(ANSWER) + 2
    for n in range(2, steps):
        assert engine.calls.index(f"step {n + 1}") < engine.calls.index(f"read {n}")
