"""Help, choices and completion."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from support.commands import COMMAND, Done
from typer.main import get_command

from gecko_mlc.cli.app import app

Inside = Callable[..., Done]
COMMANDS = list(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_which_fits(
    command: str, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    done = inside(command, "--help")
    assert done.returncode == 0
    assert f"gecko-mlc {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert "<bool>" not in done.stdout
    assert command in inside("--help").stdout


def test_what_can_be_chosen_is_listed(inside: Inside) -> None:
    said = " ".join(inside("compile", "--help").stdout.replace("│", "").split())
    assert "auto|cuda|cpu" in said
    assert "One of float32, float16, bfloat16, int8." in said
    assert "One of q0f32, q0f16, q0bf16, q3f16_1, q4f16_1, q4f32_1, q8f16_1." in said
    assert "<bool>" not in inside("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "x", "-p", "x", "--device", "vulkan"],
            "error: --device: should be auto, cuda or cpu, got",
        ),
        (["bench", "x", "--state-dtype", "int4"], "error: --state-dtype: should be float32, float16, bfloat16 or int8"),
        (["compile", "x", "-o", "x.so", "--quantization", "q9"], "error: --quantization: should be q0f32, q0f16,"),
        (["gen_config", "x", "-o", "x", "--conv-template", "llama"], "error: --conv-template: should be LM, chatml or"),
        (
            ["random_weight", "x", "-o", "x", "--dtype", "int8"],
            "error: --dtype: should be float32, float16 or",
        ),
    ],
)
def test_another_choice_is_refused_in_a_line(arguments: list[str], message: str, inside: Inside) -> None:
    done = inside(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_choice_may_be_in_capitals(inside: Inside) -> None:
    done = inside("generate", "nothing", "-p", "x", "--device", "CPU", "--state-dtype", "BFloat16")
    assert "device=cpu  state_dtype=bfloat16" in done.stderr


def test_what_is_nearly_a_command_is_named(inside: Inside) -> None:
    done = inside("genrate")
    assert done.returncode == 2
    assert "Did you mean 'generate'?" in done.stderr


def test_shells_complete_commands_options_and_choices() -> None:
    for words, completions in (
        ("gen", "generate"),
        ("generate --max", "--max-tokens"),
        ("generate --device c", "cuda\ncpu"),
    ):
        environment = {
            "_GECKO_MLC_COMPLETE": "complete_bash",
            "COMP_WORDS": f"gecko-mlc {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        script = "import sys; sys.argv[0] = 'gecko-mlc'; from gecko_mlc.cli import main; main()"
        done = subprocess.run(
            [COMMAND[0], "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert completions in done.stdout, done.stderr
