"""`chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from gecko_mlc.cli.answering import sampling_options, speed_line
from gecko_mlc.cli.interrupts import interruptible
from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import ModelArgument, RunOptions, SamplingOptions, SeedOption, checked
from gecko_mlc.cli.terminal import console, show_arguments, write_text
from gecko_mlc.formats.errors import GeckoError

HELP = """\
/help              these lines
/reset             forget the conversation
/stats             speeds of the last answer, and what the state has seen
/set NAME=VALUE    change temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                   frequency_penalty, max_tokens or seed; alone, shows them
/exit              leave (so does Ctrl-D)
Ctrl-C stops an answer."""


def chat(
    model: ModelArgument,
    seed: SeedOption = 0,
    sampling: SamplingOptions = SamplingOptions(),
    running: RunOptions = RunOptions(),
) -> None:
    """Talk with a model. The state remembers: a turn feeds only its own tokens.

    Example: gecko-mlc chat gecko-demo
    """
    from gecko_mlc.api import Conversation

    show_arguments(model=model, **running._asdict(), seed=seed)
    loaded = load(model, running)
    settings: dict[str, Any] = {
        **loaded.default_sampling().model_dump(),
        **sampling.given(),
        "max_tokens": 512,
        "seed": seed,
    }
    checked(lambda: _options(loaded, settings))
    conversation = Conversation(loaded)
    if sys.stdin.isatty():
        console.print("/help lists the commands.", style="dim")
    last = ""
    for line in _lines():
        command, _, rest = line.strip().partition(" ")
        if not command:
            continue
        if command in ("/exit", "/quit"):
            break
        if command == "/help":
            console.print(HELP, markup=False)
        elif command == "/reset":
            conversation.reset()
            console.print("forgotten", style="dim")
        elif command == "/stats":
            console.print(f"{last or 'nothing said yet'}; the state has seen {conversation.tokens:,} tokens")
        elif command == "/set":
            _set(loaded, settings, rest)
        elif command.startswith("/"):
            console.print(f"unknown command {command}; /help lists them", markup=False)
        else:
            with interruptible() as interrupted:
                generation = conversation.say(line, _options(loaded, settings), interrupted)
                for text in generation:
                    write_text(text)
                write_text("\n")
            if generation.finish_reason == "interrupted":
                console.print("(stopped)", style="dim")
            last = speed_line(generation)
            # Another answer to the same words may differ.
            settings["seed"] += 1


def _options(loaded: Any, settings: dict[str, Any]) -> Any:
    sampling = {k: v for k, v in settings.items() if k not in ("max_tokens", "seed")}
    return sampling_options(loaded, sampling, settings["seed"], settings["max_tokens"], None)


def _set(loaded: Any, settings: dict[str, Any], text: str) -> None:
    """Change one setting, or say what is wrong with the wish."""
    name, equals, value = text.strip().partition("=")
    name = name.strip().replace("-", "_")
    if not name:
        console.print("  ".join(f"{k}={v}" for k, v in settings.items()), markup=False)
        return
    try:
        if name not in settings or not equals:
            raise GeckoError(f"expected NAME=VALUE with a name of {', '.join(settings)}")
        number = type(settings[name])(value)
        checked(lambda: _options(loaded, {**settings, name: number}))
        settings[name] = number
    except (GeckoError, ValueError) as error:
        console.print(f"/set {text}: {error}", markup=False)


def _lines() -> Iterator[str]:
    """The user's lines: edited at a terminal, read as they are from a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
