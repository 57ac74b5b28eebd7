"""From what a user calls a model to its files: folders, the demo that comes along, presets, a package's models."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gecko_mlc.cache import DEMO, Say, demo_checkpoint, demo_folder
from gecko_mlc.formats.chat_config import CHAT_CONFIG
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.weights import check_whole
from gecko_mlc.home import package


def located(name: str | Path) -> Path:
    """The path that is meant by `name`: with its ~, or in the package that this runs from. There may be nothing."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # Of a user that is not known.
        path = Path(name)
    folder = package()
    return folder / path if folder is not None and not path.exists() and (folder / path).exists() else path


def is_demo(name: str | Path) -> bool:
    """Whether the model called `name` is the one that comes along."""
    return str(name) == DEMO and not located(name).exists()


def model_folder(name: str | Path, say: Say = lambda text: None) -> Path:
    """The model folder called `name`; the shipped demo's is made when it is first needed.

    Raises `GeckoError` for what is none, or whose conversion has not ended.
    """
    path = located(name)
    if path.is_dir():
        check_whole(path)
        if not (path / CHAT_CONFIG).is_file():
            raise GeckoError(f"{path}: not a model folder (no {CHAT_CONFIG}); `gecko-mlc convert_weight` makes one")
        return path
    if is_demo(name) and importlib.util.find_spec("gecko_mlc.demo") is not None:
        return demo_folder(say)
    raise GeckoError(f"{name}: no such model folder; {_known_models()}")


def _known_models() -> str:
    """The models that there are by their names alone."""
    folder = package()
    if folder is None:
        return f"{DEMO} is the model that comes along, presets have no weights"
    return f"in this package: {', '.join(sorted(file.parent.name for file in folder.glob(f'*/{CHAT_CONFIG}')))}"


@contextmanager
def config_source(name: str) -> Iterator[Path]:
    """The config.json called `name`, or a folder with one, until the block ends: of the demo with its checkpoint and
    tokenizer, of a preset alone."""
    from gecko_mlc.config import PRESETS, dump_config, preset

    path = located(name)
    if is_demo(name):
        with demo_checkpoint() as folder:
            yield folder
    elif name in PRESETS and not path.exists():
        with tempfile.TemporaryDirectory() as temporary:
            config = Path(temporary) / f"{name}.json"
            config.write_text(dump_config(preset(name)))
            yield config
    else:
        yield path
