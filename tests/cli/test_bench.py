"""`bench`: what it refuses before it loads anything, and results that are not lost."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.models import random_parameters, small_config

from gecko_mlc import api
from gecko_mlc.cli import main
from gecko_mlc.cli.app import app
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure import bench
from gecko_mlc.runtime.measure.ceilings import Ceilings

LIMITS = Ceilings(memory_gb_per_second=1e3, matmul_gflop_per_second=1e3)
FEW = ["-p", "5", "-n", "3", "-r", "1"]


class Printed:
    """Runs `bench` on a small model: what it prints, in an encoding. `out` is that too, `code` the exit status."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.out, self.code = "", 0

    def __call__(self, *arguments: str | Path, encoding: str = "utf-8") -> str:
        written = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
        self._patch.setattr(sys, "stdout", written)
        self._patch.setattr(sys, "argv", ["gecko-mlc", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        self.code = int(ended.value.code or 0)
        written.seek(0)
        self.out = written.read()
        return self.out


@pytest.fixture
def printed(engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> Printed:
    config = small_config(num_layers=1)
    loaded = SimpleNamespace(engine=engine(config, random_parameters(config)))
    monkeypatch.setattr(api, "load_model", lambda *_, **__: loaded)
    monkeypatch.setattr(bench, "Machine", lambda: SimpleNamespace(measure=lambda: LIMITS))
    return Printed(monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "1000000000000"], "decode-tokens: expected at most 16,777,216 tokens, got 1,000,000,000,000"),
        (["-p", "1000000000000"], "prompt-tokens: expected at most 16,777,216 tokens, got 1,000,000,000,000"),
        (["-d", "0,1000000000000"], "depth: expected at most 16,777,216 tokens, got 1,000,000,000,000"),
        (["-d", "²"], "--depth '²': expected numbers"),
        (["-d", "9" * 5000], "expected numbers"),
        (["-o", "nowhere/x.md"], "nowhere/x.md: there is no folder nowhere"),
        (["-o", "x.txt"], "x.txt: expected a name that ends in .md, .csv, .json, or what it is by --format"),
        (["-o", "."], "a folder, expected the name of a file"),
        (["-o", "x.md", "--format", "table"], "of a file expected one of md, csv, json"),
        (["--format", "xml"], "should be table, md, csv or json"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(GeckoError) as error:
        app(["bench", "model", *options], standalone_mode=False)
    assert message in str(error.value)


def test_a_file_is_what_its_name_ends_in(printed: Printed, tmp_path: Path) -> None:
    for suffix in ("md", "csv", "json"):
        assert printed("model", *FEW, "-o", tmp_path / f"x.{suffix}") == ""
    printed("model", *FEW, "--format", "csv", "-o", tmp_path / "x.txt")
    assert (tmp_path / "x.md").read_text().count("\n|") == 4
    for name in ("x.csv", "x.txt"):
        rows = list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        assert [row["test"] for row in rows] == ["prefill", "decode"]
        assert all(float(row["tokens_per_second"]) > 0 and row["deviation"] == "" for row in rows)
    assert len(json.loads((tmp_path / "x.json").read_text())["measurements"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json", "x.md", "x.txt"]


def test_the_current_folder_has_a_name(printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(printed(".", *FEW, "--format", "json"))["model"] == tmp_path.name


@pytest.mark.parametrize("form", ["table", "md"])
def test_a_terminal_of_ascii(printed: Printed, form: str) -> None:
    assert "+-" in printed("model", *FEW, "--format", form, encoding="ascii")
    assert "±" in printed("model", *FEW, "--format", form)


def test_an_interrupt_prints_what_was_measured(
    printed: Printed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter([1.0, 1.0, 1.0])

    def time_test(*_: Any) -> float:
        if (seconds := next(runs, None)) is None:
            raise KeyboardInterrupt
        return seconds

    monkeypatch.setattr(bench, "time_test", time_test)
    printed("model", *FEW, "--format", "csv")
    (row,) = csv.DictReader(printed.out.splitlines())
    assert (row["test"], row["tokens_per_second"]) == ("prefill", "5.0")
    assert printed.code == 130
    assert capsys.readouterr().err.count("interrupted") == 1


def test_a_folder_that_vanishes_takes_nothing_with_it(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()

    def time_test(*_: Any) -> float:
        if folder.exists():
            folder.rmdir()
        return 1.0

    monkeypatch.setattr(bench, "time_test", time_test)
    assert len(printed("model", *FEW, "-o", folder / "x.csv").splitlines()) == 3
    assert printed.code == 1
    assert f"error: {folder / 'x.csv'}: there is no folder" in capsys.readouterr().err
