"""One way from what a user calls a model to its files, for every command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gecko_mlc import home
from gecko_mlc.cli import main
from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.models import config_source, located, model_folder


@pytest.fixture
def gecko(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process: what it said."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setenv("GECKO_MLC_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["gecko-mlc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit):
            main()
        return "".join(capfd.readouterr())

    return run


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that this runs from, with a model of its own."""
    monkeypatch.setattr(home, "_package", None)
    home.use_package(tmp_path / "package")
    folder = tmp_path / "package" / "tiny"
    folder.mkdir(parents=True)
    (folder / CHAT_CONFIG).touch()
    return tmp_path / "package"


def test_a_tilde_in_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located("~/model") == tmp_path / "model"
    assert located("~no-such-user/model") == Path("~no-such-user/model")


def test_a_packages_models_are_known_from_any_folder(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("tiny") == package / "tiny"
    with pytest.raises(GeckoError, match="big: no such model folder; in this package: tiny"):
        model_folder("big")
    (tmp_path / "tiny").mkdir()
    assert located("tiny") == Path("tiny")


@pytest.mark.parametrize("name", ["gecko-7b", "nothing", "gecko-Demo"])
def test_what_has_no_weights_is_no_model_folder(name: str) -> None:
    with pytest.raises(GeckoError, match=f"{name}: no such model folder; gecko-demo is the model that comes along"):
        model_folder(name)


def test_a_preset_is_a_config_and_the_demo_a_checkpoint() -> None:
    with config_source("gecko-120m") as preset:
        assert json.loads(preset.read_text())["model_dim"] == 768
    with config_source("gecko-demo") as demo:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in demo.iterdir()}
    assert not preset.exists()
    assert not demo.exists()


def test_the_demo_is_converted_by_its_name(gecko: Callable[..., str], tmp_path: Path) -> None:
    said = gecko("convert_weight", "gecko-demo", "--quantization", "q4f16_1", "-o", tmp_path / "quarter")
    assert "7,659,264 parameters in" in said
    assert re.search(r"quantization +q4f16_1", gecko("info", tmp_path / "quarter"))
    config = read_chat_config(tmp_path / "quarter")
    assert (config.quantization, config.conv_template.name, config.tokenizer_files) == (
        "q4f16_1",
        "play",
        ["tokenizer.json"],
    )


def test_other_commands_know_the_names_too(gecko: Callable[..., str], tmp_path: Path) -> None:
    gecko("gen_config", "gecko-demo", "--conv-template", "LM", "-o", tmp_path / "demo")
    assert read_chat_config(tmp_path / "demo").conv_template.name == "LM"
    gecko("gen_config", "gecko-7b", "--quantization", "q4f16_1", "-o", tmp_path / "preset")
    assert read_chat_config(tmp_path / "preset").config["num_layers"] == 32
    assert "7,659,264 parameters" in gecko("random_weight", "gecko-demo", "-o", tmp_path / "random")
    assert "7,659,264 parameters" in gecko(
        "convert_weight", "gecko-demo", "--source", tmp_path / "random", "-o", tmp_path / "converted"
    )
    assert "a preset has no weights; name a checkpoint" in gecko("convert_weight", "gecko-7b", "-o", tmp_path / "none")
    assert "gecko-demo-q0f32" in gecko("info", "gecko-demo")
    assert "7,385,817,088" in gecko("info", "gecko-7b")
    assert "nothing: no such library" in gecko("info", "nothing")
