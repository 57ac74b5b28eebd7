"""A command's model, made ready while the user sees what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gecko_mlc.cli.options import RunOptions
from gecko_mlc.cli.terminal import byte_progress, say, step_progress

if TYPE_CHECKING:
    from gecko_mlc.api import Model


def load(model: str, running: RunOptions, title: str = "loading", text: bool = False) -> Model:
    """The model called `model`, run as the options say; it is compiled first where that is needed. With `text` it has a
    tokenizer."""
    from gecko_mlc.api import load_model

    with step_progress() as step, byte_progress(title) as progress:
        return load_model(model, say=say, compiling=step, progress=progress, text=text, **running._asdict())
