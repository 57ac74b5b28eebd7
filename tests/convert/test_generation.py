"""What a checkpoint's folder says of generating, in `generation_config.json` and `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import without_weights

from gecko_mlc.convert.chat_config import plan_files
from gecko_mlc.convert.generation import read_generation
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import quantization
from gecko_mlc.integrations.mlc_llm import ModelConfig


def write(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": [2, 7]}, {"eos_token_id": [2, 7]}),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 2}, {"eos_token_id": 2}),
        ({"bos_token_id": 0, "pad_token_id": 3}, {"bos_token_id": 1}, {"bos_token_id": 1, "pad_token_id": 3}),
        # Null says nothing.
        ({"bos_token_id": 1, "top_p": 0.5}, {"bos_token_id": None, "top_p": None}, {"bos_token_id": 1, "top_p": 0.5}),
        ({}, {"temperature": None}, {}),
        ({}, {"top_k": 20, "min_p": 0.05, "top_p": 1}, {"top_k": 20, "min_p": 0.05, "top_p": 1.0}),
        ({}, {"repetition_penalty": 1.1, "transformers_version": "4.50"}, {"repetition_penalty": 1.1}),
        # Not to sample is to take the likeliest, whatever else there is.
        ({}, {"do_sample": False}, {"temperature": 0.0}),
        ({}, {"do_sample": False, "temperature": 0.7, "top_k": 5}, {"temperature": 0.0, "top_k": 5}),
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": False}, {"temperature": 0.7}, {"temperature": 0.0}),
        ({"temperature": 0.3}, None, {"temperature": 0.3}),
    ],
)
def test_generation_config_goes_before_config(
    config: dict[str, Any], generation: dict[str, Any] | None, expected: dict[str, Any], tmp_path: Path
) -> None:
    assert read_generation(write(tmp_path, config, generation), vocab_size=10) == expected


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, bad) for field in ("bos_token_id", "eos_token_id", "pad_token_id") for bad in (-1, 10, 10**9)),
        *((field, bad) for field in ("bos_token_id", "eos_token_id", "pad_token_id") for bad in (True, 2.0, "2")),
        *(("eos_token_id", bad) for bad in ([2, 10], [2, -1], [2, None], [[2]])),
        ("bos_token_id", [1]),
        *(("temperature", bad) for bad in ("0.7", True, -0.1, [1], float("nan"), 1e9)),
        *(("top_k", bad) for bad in (20.5, "20", True, -1)),
        *(("do_sample", bad) for bad in ("false", 0, [])),
        *((field, bad) for field in ("top_p", "min_p", "repetition_penalty") for bad in ("1", False, 1000)),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_field(name: str, field: str, value: Any, tmp_path: Path) -> None:
    files = {"config.json": {}, "generation_config.json": {}, name: {field: value}}
    path = write(tmp_path, files["config.json"], files["generation_config.json"])
    with pytest.raises(GeckoError) as error:
        read_generation(path, vocab_size=10)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert field in str(error.value)


def test_the_chat_config_and_mlc_llm_have_it_from_one_place(tmp_path: Path) -> None:
    folder = without_weights(tmp_path)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [0, 7], "top_k": 20, "min_p": 0.05, "do_sample": False})
    )
    made = plan_files(folder, quantization("q0f32")).chat_config
    assert made.stop_tokens() == {0, 7}
    assert (made.bos_token_id, made.top_k, made.min_p, made.temperature) == (3, 20, 0.05, 0.0)
    (folder / "generation_config.json").write_text('{"bos_token_id": 4096}')
    for read in (
        lambda: plan_files(folder, quantization("q0f32")),
        lambda: ModelConfig.from_file(folder / "config.json"),
    ):
        with pytest.raises(GeckoError, match=r"generation_config.json: bos_token_id: 4096 is no id of the vocabulary"):
            read()
