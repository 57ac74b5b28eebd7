"""From a model's name to files that run: the shipped demo unpacked, a library compiled, both cached."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from gecko_mlc import __version__
from gecko_mlc.formats.chat_config import CHAT_CONFIG, read_chat_config
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import read_metadata
from gecko_mlc.formats.versions import VERSIONS
from gecko_mlc.formats.weights import TENSOR_CACHE, check_whole
from gecko_mlc.runtime.devices import host
from gecko_mlc.targets import find, targets

DEMO = "gecko-demo"
DEMO_QUANTIZATION = "q0f32"


def cache_folder() -> Path:
    """Where prepared files are kept: `$GECKO_MLC_HOME`, or the user's cache folder."""
    if home := os.environ.get("GECKO_MLC_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gecko_mlc"


def model_folder(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """The model folder called `name`; the shipped demo's is made when first needed."""
    path = Path(name)
    if path.is_dir():
        check_whole(path)
        if not (path / CHAT_CONFIG).is_file():
            raise GeckoError(f"{path}: not a model folder (no {CHAT_CONFIG}); `gecko-mlc convert_weight` makes one")
        return path
    if name != DEMO:
        raise GeckoError(f"{name}: no such model folder; {DEMO} is the model that comes along")
    folder = cache_folder() / "models" / f"{DEMO}-{DEMO_QUANTIZATION}-MLC-{__version__}"
    if not (folder / TENSOR_CACHE).is_file():
        say(f"unpacking {DEMO} into {folder}")
        unpack_demo(folder)
    return folder


def unpack_demo(folder: Path) -> None:
    """Convert the shipped demo checkpoint into a model folder, which is there when it is whole."""
    from gecko_mlc.convert.chat_config import plan_files
    from gecko_mlc.convert.checkpoint import open_checkpoint
    from gecko_mlc.convert.weights import convert_weights
    from gecko_mlc.formats.quantization import quantization

    scheme = quantization(DEMO_QUANTIZATION)
    packed = resources.files("gecko_mlc.demo").joinpath("model.safetensors.xz").read_bytes()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        model, checkpoint = Path(temporary) / "model", Path(temporary) / "model.safetensors"
        with resources.as_file(resources.files("gecko_mlc.demo")) as shipped:
            files = plan_files(shipped, scheme, "play")
            files.write(model)
        checkpoint.write_bytes(lzma.decompress(packed))
        convert_weights(files.config, open_checkpoint(checkpoint), scheme, model)
        try:
            os.replace(model, folder)
        except OSError:
            if not (folder / TENSOR_CACHE).is_file():  # If it is, another process was first.
                raise


def library_name(device: str) -> str:
    """What a library inside a model folder is called."""
    return f"{device}.so"


def model_library(
    folder: Path,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
    slots: int = 1,
    state_dtype: str | None = None,
) -> Path:
    """The library in the model folder `folder`, or one for this machine, compiled when first needed with `slots`.

    `device` is a target's name, or auto: the first target that runs on this machine. With a `state_dtype` it is a
    library of that one. The compiler runs in a process of its own: this one needs no more than TVM's runtime. Raises
    `GeckoError` when nothing can be compiled.
    """
    # What comes with a model is used on `auto`, be it for the slower device.
    candidates = [find(device)] if device != "auto" else sorted(targets(), key=lambda t: not t.player.usable())
    for target in candidates:
        library = folder / library_name(target.name)
        if library.is_file() and (state_dtype is None or state_dtype == read_metadata(library).state_dtype):
            return library
    target, last = candidates[0], targets()[-1]
    if importlib.util.find_spec("gecko_mlc.compile") is None:
        raise GeckoError(
            f"{folder}: no library for {target.name} in it, and nothing here to compile one; give it with --model-lib"
        )
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
    path = cache_folder() / "libs" / f"gecko-{chat_config.quantization}-{target.name}-{digest}.so"
    if not path.is_file():
        say(f"compiling for this machine into {path} (once)")
        command = [sys.executable, "-m", "gecko_mlc", "compile", str(folder), "--device", target.name]
        command += ["--overrides", f"max_batch_size={slots}"]
        command += [] if state_dtype is None else ["--state-dtype", state_dtype]
        environment = {k: v for k, v in os.environ.items() if k != "TVM_USE_RUNTIME_LIB"}
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            hint = "" if target is last else f"\n--device {last.name} runs the model all the same"
            raise GeckoError(f"compiling failed:\n{done.stderr.strip()}{hint}")
    return path


def _sources_digest() -> str:
    """A digest of the compiling side's sources, so that a changed kernel is never served from the cache."""
    digest = hashlib.sha256()
    for package in ("gecko_mlc", "gecko_mlc.tir_kernels", "gecko_mlc.compile"):
        for location in importlib.import_module(package).__path__:
            for file in sorted(Path(location).rglob("*.[cp]*")):
                if file.suffix in (".py", ".c"):
                    digest.update(file.read_bytes())
    return digest.hexdigest()
