"""Conversation templates: MLC's `conv_template`, and the text a turn adds to a stream."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Template(BaseModel):
    """How roles and messages become text; MLC's field names."""

    model_config = ConfigDict(extra="ignore")

    name: str
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: dict[str, str] = Field(default_factory=lambda: {"user": "", "assistant": ""})
    role_content_sep: str = ""
    role_empty_sep: str = ""
    seps: list[str] = Field(default_factory=lambda: [""], min_length=1, max_length=2)
    stop_str: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)


class Text(NamedTuple):
    """A piece of a prompt; `special` text may hold special tokens, a user's may not."""

    text: str
    special: bool


TEMPLATES = {
    template.name: template
    for template in (
        Template(name="LM"),
        Template(
            name="chatml",
            system_template="<|im_start|>system\n{system_message}<|im_end|>\n",
            system_message="A conversation between a user and an assistant.",
            roles={"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
            role_content_sep="\n",
            role_empty_sep="\n",
            seps=["<|im_end|>\n"],
            stop_str=["<|im_end|>"],
        ),
        # Two speakers of a play, for models that know plays.
        Template(
            name="play",
            system_template="[Enter Hamlet and Horatio.]\n\n",
            roles={"user": "Ham.", "assistant": "Hor."},
            role_content_sep="\n",
            role_empty_sep="\n",
            seps=["\n\n"],
            stop_str=["\n\n"],
        ),
    )
}


def turn(template: Template, message: str, first: bool) -> list[Text]:
    """What a user's message adds to the stream, up to where the assistant's answer begins.

    The `first` turn begins with the system message; a later one ends the assistant's answer before it.
    """
    separator = template.seps[0]
    parts = []
    if first:
        system = template.system_template.replace("{system_message}", template.system_message)
        parts.append(Text(system, True))
    else:
        parts.append(Text(template.seps[-1], True))
    parts.append(Text(template.roles["user"] + template.role_content_sep, True))
    parts.append(Text(message, False))
    parts.append(Text(separator + template.roles["assistant"] + template.role_empty_sep, True))
    return [part for part in parts if part.text]
