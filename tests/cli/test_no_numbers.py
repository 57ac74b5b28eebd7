"""`generate` and `chat` where no token can be drawn."""

from __future__ import annotations

import io
import sys

import pytest
from support.fake_engine import FakeEngine
from support.fake_model import FakeModel
from support.tokens import ids

from gecko_mlc import api
from gecko_mlc.cli import main
from gecko_mlc.formats.library import NO_TOKEN


@pytest.mark.parametrize("arguments", [["generate", "fake", "--prompt", "x"], ["chat", "fake"]])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_logits_that_are_no_numbers(
    arguments: list[str],
    asynchronous: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was said before stays; one error, and no success."""
    model = FakeModel(FakeEngine([*ids(*"aba"), NO_TOKEN], asynchronous=asynchronous))
    monkeypatch.setattr(api, "load_model", lambda *_, **__: model)
    monkeypatch.setattr(sys, "argv", ["gecko-mlc", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\nmore\n")))
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out.strip()) == (1, "aba")
    assert err.count("are no numbers") == 1
    assert "Traceback" not in err
