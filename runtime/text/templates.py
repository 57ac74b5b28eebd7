"""Conversation templates: MLC's `conv_template`, and the text a turn adds to a stream."""

from __future__ import annotations

from typing import NamedTuple

from gecko_mlc.formats.templates import Template


class Text(NamedTuple):
    """A piece of a prompt; `special` text may hold special tokens, a user's may not."""

    text: str
    special: bool


def turn(template: Template, message: str, first: bool) -> list[Text]:
    """What a user's message adds to the stream, up to where the assistant's answer begins.

    The `first` turn begins with the system message; later ones come after the separator that ends an answer.
    """
    parts = []
    if first:
        system = template.system_template.replace("{system_message}", template.system_message)
        parts.append(Text(system, True))
    parts.append(Text(template.roles["user"] + template.role_content_sep, True))
    parts.append(Text(message, False))
    parts.append(Text(template.seps[0] + template.roles["assistant"] + template.role_empty_sep, True))
    return [part for part in parts if part.text]
