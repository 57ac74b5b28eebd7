"""`chat`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gecko_mlc.cli.answering import ready, speed_line, write_answer
from gecko_mlc.cli.interrupts import interruptible
from gecko_mlc.cli.options import ModelArgument, RunOptions, SamplingOptions, SeedOption
from gecko_mlc.cli.streams import utf8, utf8_argument
from gecko_mlc.cli.terminal import console
from gecko_mlc.formats.errors import GeckoError, OptionError
from gecko_mlc.formats.options import unknown_option

if TYPE_CHECKING:
    from gecko_mlc.api import GenerationOptions

HELP = """\
/help              these lines
/reset             forget the conversation
/stats             speeds of the last answer, and what the state has seen
/set NAME=VALUE    change temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                   frequency_penalty, max_tokens or seed; alone, shows them
/exit              leave (so does Ctrl-D)
Ctrl-C stops an answer."""
COMMANDS = ("/help", "/reset", "/stats", "/set", "/exit", "/quit")
MAX_TOKENS = 512


def chat(
    model: ModelArgument,
    seed: SeedOption = None,
    sampling: SamplingOptions = SamplingOptions(),
    running: RunOptions = RunOptions(),
) -> None:
    """Talk with a model. The state remembers: a turn feeds only its own tokens.

    Example: gecko-mlc chat gecko-demo
    """
    from gecko_mlc.api import Conversation

    loaded, options = ready(model, running, {**sampling.given(), "max_tokens": MAX_TOKENS, "seed": seed})
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
            console.print(HELP)
        elif command == "/reset":
            conversation.reset()
            last = ""
            console.print("forgotten", style="dim")
        elif command == "/stats":
            console.print(f"{last or 'nothing said yet'}; the state has seen {conversation.tokens:,} tokens")
        elif command == "/set":
            options = _set(options, rest)
        elif command.startswith("/"):
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            console.print(f"unknown command {command}; {hint}")
        else:
            with interruptible() as interrupted:
                generation = conversation.say(line, options, interrupted)
                write_answer(generation)
            if generation.finish_reason == "interrupted":
                console.print("(stopped)", style="dim")
            last = speed_line(generation)
            # Another answer to the same words may differ.
            options = options.model_copy(update={"seed": (options.seed + 1) % 2**64})


def _set(options: GenerationOptions, wish: str) -> GenerationOptions:
    """The options with one of them changed, which is said, as is what is wrong with the wish; without one, all are."""
    settings = _settings(options)
    name, equals, value = (part.strip() for part in wish.partition("="))
    name = name.replace("-", "_")
    if not name:
        console.print("  ".join(f"{k}={v}" for k, v in settings.items()))
        return options
    try:
        if name not in settings:
            raise unknown_option(name, list(settings))
        if equals:
            options = options.model_copy(update={name: _number(value, type(settings[name]))})
    except OptionError as error:
        console.print(f"/set {wish.strip()}: {error.reason}")
        return options
    console.print(f"{name}={_settings(options)[name]}")
    return options


def _number(text: str, kind: type[int] | type[float]) -> int | float | str:
    """What the text says, or the text itself, of which will be said that it is no number."""
    try:
        return kind(text)
    except ValueError:
        return text


def _settings(options: GenerationOptions) -> dict[str, float]:
    """What can be set, and to what it is."""
    return {**dict(options.sampling), "max_tokens": options.max_tokens, "seed": options.seed}


def _lines() -> Iterator[str]:
    """The user's lines that are text: edited at a terminal, read as they are from a pipe."""
    for line in _typed() if sys.stdin.isatty() else sys.stdin.buffer:
        try:
            yield utf8(line, "this line") if isinstance(line, bytes) else utf8_argument(line, "this line")
        except GeckoError as error:
            console.print(str(error))


def _typed() -> Iterator[str]:
    """Lines as they are edited at a terminal. Ctrl-C empties one, and leaves where there is nothing to lose."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                raise
        except EOFError:
            return
