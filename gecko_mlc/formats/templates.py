"""Conversation templates: MLC's `conv_template`, how roles and messages become text."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from gecko_mlc.formats.options import Options
from gecko_mlc.formats.token_ids import token_ids

# Every turn feeds the short ones. More characters than this are a slip, or meant to keep a machine busy.
Short = Annotated[str, Field(max_length=2**12)]
Long = Annotated[str, Field(max_length=2**18)]

ROLES = ("user", "assistant")


class Template(Options):
    """How roles and messages become text; MLC's field names."""

    model_config = ConfigDict(extra="ignore")

    name: Short
    system_template: Long = "{system_message}"
    system_message: Long = ""
    roles: dict[Short, Short] = Field(default_factory=lambda: dict.fromkeys(ROLES, ""))
    role_content_sep: Short = ""
    role_empty_sep: Short = ""
    seps: list[Short] = Field(default_factory=lambda: [""], min_length=1, max_length=2)
    stop_str: list[Short] = Field(default_factory=list, max_length=256)
    stop_token_ids: Annotated[list[int], BeforeValidator(token_ids)] = Field(default_factory=list)

    @field_validator("roles")
    @classmethod
    def _both_speak(cls, roles: dict[str, str]) -> dict[str, str]:
        if missing := [role for role in ROLES if role not in roles]:
            raise ValueError(f"should say what {' and '.join(missing)} are called")
        return roles


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
