"""The Python interface: what the command line is made of.

from gecko_mlc.api import load_model

model = load_model("gecko-demo")
for text in model.generate("It is a truth universally acknowledged"):
    print(text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType

from gecko_mlc.cache import mend, model_library
from gecko_mlc.formats.chat_config import read_chat_config
from gecko_mlc.formats.errors import DamagedError, GeckoError, OptionError
from gecko_mlc.formats.options import check_type, unknown_value
from gecko_mlc.formats.quantization import STATE_DTYPES
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.formats.templates import TEMPLATES, Template
from gecko_mlc.models import located, model_folder
from gecko_mlc.runtime.conversation import Conversation
from gecko_mlc.runtime.devices.memory import free_memory
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.memory import told_of_shortage
from gecko_mlc.runtime.model import Model, read_tokenizer
from gecko_mlc.runtime.players.threads import check_threads
from gecko_mlc.runtime.text.stream import TextStream
from gecko_mlc.runtime.text.tokenizer import Tokenizer
from gecko_mlc.targets import names
from gecko_mlc.trust import check_undamaged

__all__ = [
    "TEMPLATES",
    "Conversation",
    "GeckoError",
    "Generation",
    "GenerationOptions",
    "Model",
    "Sampling",
    "Template",
    "TextStream",
    "Tokenizer",
    "load_model",
]


def load_model(
    model: str | Path,
    model_lib: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    slots: int = 1,
    state_dtype: str | None = None,
    threads: int | None = None,
    text: bool = False,
    compiling: Callable[[str], None] = lambda step: None,
) -> Model:
    """Load a model folder, or the demo by its name, with a library or one compiled for this machine.

    Without a library, `device` is what to compile for: cpu, cuda, or auto, this machine's GPU if it has one, and
    `slots` for how many streams at a time, and `state_dtype` what their keys and values are kept as (float32, float16,
    bfloat16, or int8 for values alone); by default what the model's quantization says. On a CPU, at most
    `threads` work at a time, by default one for each core that this process may use, and fewer while others are busy
    there. `say` is told of work that takes long, `progress` of bytes loaded and in all, `compiling` of each step of
    compiling, and "" at its end. With `text` the tokenizer is looked at before the long work, and not when text is
    first needed. Raises `GeckoError`, for values that cannot be before anything is compiled or loaded.

    A library is native code: one in the model folder is refused unless this machine compiled it or the user trusts it
    (`gecko-mlc trust`); to name it here is to trust it.
    """
    check_type("model", model, str, Path)
    check_type("model_lib", model_lib, str, Path, NoneType)
    check_type("slots", slots, int)
    if slots < 1:
        raise OptionError("slots", f"should be at least 1, got {slots}")
    if threads is not None:
        check_type("threads", threads, int)
        check_threads(threads)
    if device not in (devices := ("auto", *names())):
        raise unknown_value("device", device, devices)
    if state_dtype is not None and state_dtype not in STATE_DTYPES:
        raise unknown_value("state_dtype", state_dtype, STATE_DTYPES)
    if model_lib is not None and state_dtype is not None:
        raise GeckoError(f"{model_lib} is compiled already: its state dtype cannot be chosen, only with `compile`")
    with told_of_shortage({}, free_memory()):
        folder = model_folder(model, say)
        tokenizer = read_tokenizer(folder, read_chat_config(folder)) if text else None
        if model_lib is None:
            library = model_library(folder, device, say, slots, state_dtype, compiling)
        else:
            library = located(model_lib)
            check_undamaged(library)
        try:
            return Model(folder, library, progress, threads, tokenizer)
        except DamagedError:
            if not mend(folder, say):
                raise
            return Model(folder, library, progress, threads, tokenizer)
