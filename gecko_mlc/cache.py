"""What is made on this machine when it is first needed, and kept: the shipped demo's model folder, and libraries.

Both are checked whenever they are used, and made again when they are not what was made.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from gecko_mlc import __version__
from gecko_mlc.formats.chat_config import read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import read_json
from gecko_mlc.formats.library import read_metadata
from gecko_mlc.formats.versions import VERSIONS
from gecko_mlc.formats.weights import read_tensor_cache
from gecko_mlc.home import home_folder, make_once
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.library import check_library
from gecko_mlc.targets import Target, find, targets
from gecko_mlc.trust import check_trusted, is_trusted, sha256, trust

# What compiles is not in a package.
if TYPE_CHECKING:
    from gecko_mlc.compile_process import Request

DEMO = "gecko-demo"
DEMO_TEMPLATE = "play"
_DEMO_QUANTIZATION = "q0f32"
# The sha256 of the demo's files, but for the shards, which have theirs in their index.
_CONTENTS = "contents.json"

Say = Callable[[str], None]


def demo_folder(say: Say = lambda text: None) -> Path:
    """The model folder of the shipped demo, which is made when it is not there, or not whole."""
    folder = home_folder() / "models" / f"{DEMO}-{_DEMO_QUANTIZATION}-MLC-{__version__}"

    def make(path: Path) -> None:
        if folder.exists():
            say(f"{folder} is damaged or incomplete: unpacking {DEMO} again")
        else:
            say(f"unpacking {DEMO} into {folder}")
        _unpack_demo(path)

    make_once(folder, lambda: _is_whole(folder), make, lambda: say(f"waiting for another process to unpack {DEMO}"))
    return folder


def mend(folder: Path, say: Say) -> bool:
    """Make a model folder again whose weights are damaged, if it is one that was made here."""
    if folder.parent != home_folder() / "models":
        return False
    (folder / _CONTENTS).unlink(missing_ok=True)
    return demo_folder(say) == folder


@contextmanager
def demo_checkpoint(parent: Path | None = None) -> Iterator[Path]:
    """A folder with the shipped demo as it was trained, until the block ends: in `parent`, or with temporary files."""
    with TemporaryDirectory(dir=parent) as temporary:
        folder = Path(temporary)
        for file in resources.files("gecko_mlc.demo").iterdir():
            if file.name.endswith(".json"):
                (folder / file.name).write_bytes(file.read_bytes())
            elif file.name.endswith(".xz"):
                (folder / file.name.removesuffix(".xz")).write_bytes(lzma.decompress(file.read_bytes()))
        yield folder


def _unpack_demo(output: Path) -> None:
    from gecko_mlc.convert.chat_config import plan_files
    from gecko_mlc.convert.checkpoint import open_checkpoint
    from gecko_mlc.convert.weights import convert_weights
    from gecko_mlc.formats.quantization import quantization

    scheme = quantization(_DEMO_QUANTIZATION)
    with demo_checkpoint(output.parent) as checkpoint:
        files = plan_files(checkpoint, scheme, DEMO_TEMPLATE)
        convert_weights(files.config, open_checkpoint(checkpoint), scheme, output)
        files.write(output)
    shards = {shard.dataPath for shard in read_tensor_cache(output).records}
    contents = {file.name: sha256(file) for file in output.iterdir() if file.name not in shards}
    (output / _CONTENTS).write_text(json.dumps(contents, indent=2) + "\n")


def _is_whole(folder: Path) -> bool:
    """Whether a folder has the files that were put there; of shards, of that size: loading looks at their bytes."""
    try:
        read_tensor_cache(folder)
        return all(sha256(folder / name) == digest for name, digest in read_json(folder / _CONTENTS).items())
    except (GeckoError, ValueError):  # No system has such a name.
        return False


def library_name(device: str) -> str:
    """What a library inside a model folder is called."""
    return f"{device}.so"


def model_library(
    folder: Path,
    device: str = "auto",
    say: Say = lambda text: None,
    slots: int = 1,
    state_dtype: str | None = None,
    compiling: Say = lambda step: None,
) -> Path:
    """The library in the model folder `folder`, or one for this machine, compiled when first needed with `slots`.

    `device` is a target's name, or auto: the first target that runs on this machine. With a `state_dtype` it is a
    library of that one. `compiling` is told each step of compiling, and "" at its end. Raises `GeckoError` when the
    folder's library is not to be trusted, or nothing can be compiled.
    """
    # What comes with a model is used on `auto`, be it for the slower device.
    candidates = [find(device)] if device != "auto" else sorted(targets(), key=lambda t: not t.player.usable())
    there = [path for target in candidates if (path := folder / library_name(target.name)).is_file()]
    if state_dtype is not None:
        there = [path for path in there if read_metadata(path).state_dtype == state_dtype]
    for library in there:
        check_trusted(library)
        try:
            if library != there[-1]:
                check_library(library)
            return library
        except GeckoError as error:
            say(f"{error.message}: taking the next one")
    target, last = candidates[0], targets()[-1]
    if not target.player.usable():
        raise GeckoError(
            f"this machine runs nothing for {target.name}, `gecko-mlc info` says what is missing;"
            f" --device {last.name} runs the model all the same"
        )
    if importlib.util.find_spec("gecko_mlc.compile") is None:
        kind = target.name if state_dtype is None else f"{target.name} with a {state_dtype} state"
        found = ", ".join(sorted(file.name for file in folder.glob("*.so"))) or "none"
        raise GeckoError(f"{folder}: no library for {kind} in it but {found}, and nothing here to compile one")
    path = home_folder() / "libs" / _library_file(folder, target, slots, state_dtype)

    def make(output: Path) -> None:
        if path.exists():
            say(f"{path} is damaged: compiling it again")
        else:
            say(f"compiling for this machine into {path} (once)")
        from gecko_mlc.compile_process import compile_in_process

        try:
            compile_in_process(_request(folder, target, slots, state_dtype), output, compiling)
        except GeckoError as error:
            hint = "" if target is last else f"; --device {last.name} runs the model all the same"
            raise GeckoError(f"{error}{hint}") from None
        trust(output, path)

    def wait() -> None:
        say("waiting for another process to compile the same")
        compiling("waiting for another process")

    try:
        make_once(path, lambda: path.is_file() and is_trusted(path), make, wait)
    finally:
        compiling("")
    return path


def _request(folder: Path, target: Target, slots: int, state_dtype: str | None) -> Request:
    from gecko_mlc.compile_process import Request

    chat_config, installed = read_chat_config(folder), target.player.installed()
    return Request(
        config=chat_config.config,
        quantization=chat_config.quantization,
        state_dtype=state_dtype,
        slots=slots,
        device=target.name,
        installed={} if installed is None else {target.name: installed},
    )


def _library_file(folder: Path, target: Target, slots: int, state_dtype: str | None) -> str:
    """The name of a library's file, for which all counts that it depends on."""
    chat_config = read_chat_config(folder)
    key = {
        "config": chat_config.config,
        "quantization": chat_config.quantization,
        "state_dtype": state_dtype,
        "slots": slots,
        "machine": [host.architecture(), target.name, *target.player.machine()],
        "versions": [__version__, VERSIONS, version("apache-tvm"), _sources_digest()],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return f"gecko-{chat_config.quantization}-{target.name}-{digest}.so"


def _sources_digest() -> str:
    """A digest of the compiling side's sources, so that a changed kernel is never served from the cache."""
    digest = hashlib.sha256()
    for package in ("gecko_mlc", "gecko_mlc.tir_kernels", "gecko_mlc.compile"):
        for location in importlib.import_module(package).__path__:
            for file in sorted(Path(location).rglob("*.[cp]*")):
                if file.suffix in (".py", ".c"):
                    digest.update(file.read_bytes())
    return digest.hexdigest()
