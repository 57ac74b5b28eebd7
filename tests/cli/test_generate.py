"""`generate`: text, and what is said before the long work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Done

from gecko_mlc import api
from gecko_mlc.models import model_folder

Inside = Callable[..., Done]


def test_the_demo_speaks_english(inside: Inside) -> None:
    """Readable words, the same for the same seed, others for another, and nothing else on standard output."""
    prompt = ["generate", "gecko-demo", "--prompt", "And the king said unto", "--max-tokens", "100"]
    first = inside(*prompt, "--seed", "5")
    assert first.returncode == 0, first.stderr
    words = [word.strip(",.;:!?") for word in first.stdout.lower().split()]
    common = {"the", "of", "and", "to", "in", "that", "his", "he", "was", "it", "is", "for", "not", "with", "be"}
    assert len(words) > 50
    assert sum(word in common for word in words) > 0.2 * len(words), first.stdout
    assert inside(*prompt, "--seed", "5").stdout == first.stdout
    assert inside(*prompt, "--seed", "6").stdout != first.stdout
    greedy = inside(*prompt, "--temperature", "0", "--stop", "the")
    assert "the" not in greedy.stdout


def test_a_seed_is_random_and_shown(inside: Inside) -> None:
    prompt = ["generate", "gecko-demo", "--prompt", "And the king said unto", "--max-tokens", "12"]
    first, second = inside(*prompt), inside(*prompt)
    seed = re.search(r"seed=(\d+)", first.stderr)
    assert seed is not None
    assert seed[0] not in second.stderr
    assert inside(*prompt, "--seed", seed[1]).stdout == first.stdout


@pytest.fixture
def nothing_long(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without a tokenizer, where whatever takes long fails."""

    def long(*arguments: object) -> None:
        raise AssertionError("the long work began")

    monkeypatch.setenv("GECKO_MLC_HOME", str(home))
    for file in model_folder("gecko-demo").iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    for name in ("model_library", "Model"):
        monkeypatch.setattr(api, name, long)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gecko-demo", "-p", ""], "the prompt is empty"),
        (["gecko-demo", "-p", " \n\t"], "the prompt is empty"),
        (["gecko-demo"], "the prompt is empty"),
        (["gecko-demo", "-p", "caf\udce9"], "--prompt: byte 3 is not UTF-8"),
        (["gecko-demo", "-p", "x", "--stop", "\udcff"], "--stop: byte 0 is not UTF-8"),
        (
            ["gecko-demo", "-p", "x", "--temperature", "-1"],
            "--temperature: should be greater than or equal to 0",
        ),
        (["gecko-demo", "-p", "x", "--temperature", "nan"], "--temperature: should be a finite number"),
        (["gecko-demo", "-p", "x", "--top-p", "0"], "--top-p: should be greater than 0"),
        (["gecko-demo", "-p", "x", "--top-k", "-5"], "--top-k: should be greater than or equal to 0"),
        (["gecko-demo", "-p", "x", "--max-tokens", "0"], "--max-tokens: should be greater than or equal to 1"),
        (["gecko-demo", "-p", "x", "--seed", "-1"], "--seed: should be greater than or equal to 0"),
        (["gecko-demo", "-p", "x", "--seed", str(2**64)], "--seed: should be less than 18446744073709551616"),
        (["gecko-demo", "-p", "x", "--threads", "0"], "--threads: should be 1 to"),
        (["gecko-demo", "-p", "x", "--device", "vulkan"], "'vulkan'"),
        (["gecko-demo", "-p", "x", "--state-dtype", "float8"], "float32, float16, bfloat16 or int8, got 'float8'"),
        (["gecko-dem", "-p", "x"], "gecko-dem: no such model folder"),
        (["{model}", "-p", "x"], "text needs the model's tokenizer"),
    ],
)
def test_what_is_wrong_is_said_before_the_long_work(
    arguments: list[str], message: str, inside: Inside, nothing_long: Path
) -> None:
    done = inside("generate", *(argument.format(model=nothing_long) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_model_that_cannot_talk_says_so_without_being_talked_to(inside: Inside, nothing_long: Path) -> None:
    done = inside("chat", nothing_long)
    assert done.returncode == 1
    assert "text needs the model's tokenizer" in done.stderr
