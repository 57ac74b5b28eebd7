"""Conversation templates: MLC's `conv_template`, how roles and messages become text."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from gecko_mlc.formats.options import Options


class Template(Options):
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
