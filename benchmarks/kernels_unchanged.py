"""Compare the kernels of two versions of the sources: TensorIR, launches, CUDA's generated source.

    python benchmarks/kernels_unchanged.py [COMMIT]

Builds the functions of the four presets in every quantization, for CPUs of each kind and for CUDA, from the working
tree and from COMMIT, the one before by default, whose layout may be older. Models have two layers: kernels do not
depend on how many there are. Prints a line for each configuration that differs, and how many were compared.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("gecko-7b", "gecko-1b", "gecko-120m", "gecko-demo")
SCHEMES = ("q0f32", "q0f16", "q0bf16", "q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1")
CPUS = ("x86-64-v3", "x86-64-v4", "cortex-a76")
GPUS = ("sm_80,sm_90", "sm_120")
# Runs a script with another package first on the path, and none that an editable installation finds.
RUN = """
import runpy, sys
_, folder, *sys.argv = sys.argv
sys.path.insert(0, folder)
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What no preset turns on.
FORMS: tuple[dict[str, Any], ...] = (
    {"swiglu": False, "norm_affine": False},
    {"two_hop_residual": True, "rescale_nffn": True, "scale_emb": True, "num_rope_heads": 1},
)


class Configuration(NamedTuple):
    """What functions are built for; `target` is a CPU or a GPU's architectures."""

    preset: str
    scheme: str
    target: str
    changes: tuple[tuple[str, Any], ...] = ()
    state_dtype: str | None = None
    slots: int = 1

    @property
    def for_gpu(self) -> bool:
        """Whether CUDA's source is compared, too."""
        return self.target in GPUS


# The TensorIR and the launches as JSON, and CUDA's source or None, of each configuration.
Builds = dict[Configuration, tuple[str, str | None]]


def configurations() -> Iterator[Configuration]:
    """Everything that is compared."""
    for preset in PRESETS:
        for scheme, target in itertools.product(SCHEMES, (*CPUS, *GPUS)):
            yield Configuration(preset, scheme, target)
        for target in (CPUS[0], GPUS[0]):
            yield Configuration(preset, "q4f16_1", target, state_dtype="int8", slots=4)
            yield Configuration(preset, "q0bf16", target, slots=4)
            for scheme, form in itertools.product(("q0f16", "q4f16_1"), FORMS):
                yield Configuration(preset, scheme, target, tuple(form.items()))


def main() -> None:
    """The command; status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD~1")
    parser.add_argument("--dump", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dump is not None:
        arguments.dump.write_bytes(pickle.dumps(dump()))
        return
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", tree, arguments.commit], cwd=ROOT, check=True)
        try:
            before = builds_of(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    sys.exit(compare(before, builds_of(ROOT)))


def builds_of(tree: Path) -> Builds:
    """What a version's sources make, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        package, output = Path(name) / "gecko_mlc", Path(name) / "builds.pickle"
        package.mkdir()
        for source in (*(tree / "gecko_mlc").iterdir(), *(tree / top for top in ("tir_kernels", "compile", "runtime"))):
            (package / source.name).symlink_to(source)
        command = [sys.executable, "-P", "-c", RUN, name, __file__, "--dump", str(output)]
        subprocess.run(command, check=True)
        builds: Builds = pickle.loads(output.read_bytes())
    return builds


def compare(before: Builds, after: Builds) -> int:
    """Print what differs; 1 if anything does."""
    import tvm
    from tvm_ffi import structural_equal

    differing = 0
    for configuration, (module, source) in after.items():
        old_module, old_source = before[configuration]
        faults = []
        if module != old_module:
            old, new = (tvm.ir.load_json(text) for text in (old_module, module))
            if not structural_equal(old, new):
                faults = changed_functions(old, new) or ["how its functions call each other"]
        if old_source != source:
            faults.append("CUDA's source")
        if faults:
            differing += 1
            print(*configuration, "differs:", ", ".join(faults), flush=True)
    print(f"{len(after)} configurations compared, {differing} differ")
    return int(differing > 0)


def changed_functions(old: Any, new: Any) -> list[str]:
    """Names of the functions that only one of two modules has, or that are not structurally equal."""
    from tvm_ffi import structural_equal

    olds, news = ({v.name_hint: f for v, f in module.functions_items()} for module in (old, new))
    common = olds.keys() & news.keys()
    changed = {name for name in common if not structural_equal(olds[name], news[name], map_free_vars=True)}
    return sorted((olds.keys() ^ news.keys()) | changed)


def dump() -> Builds:
    """Of the sources that this process imports."""
    import tvm

    from gecko_mlc.config import PRESETS as FIELDS
    from gecko_mlc.config import GeckoConfig

    layout = layout_of_sources()
    result = {}
    for configuration in configurations():
        fields = {**FIELDS[configuration.preset], "num_layers": 2, **dict(configuration.changes)}
        lowered, source = layout(GeckoConfig(**fields), configuration)
        result[configuration] = (tvm.ir.save_json(lowered), source)
    return result


# The functions of a layout import what they need: names that a version of the sources does not have raise ImportError.
Layout = Callable[[Any, Configuration], tuple[Any, str | None]]


def layout_of_sources() -> Layout:
    """Of the layouts below the newest whose names are there."""
    for layout in LAYOUTS:
        try:
            return layout()
        except ImportError:
            continue
    raise RuntimeError("none of the known layouts: add one to LAYOUTS")


def target_entries() -> Layout:
    """A target's entry leads to its backend."""
    from gecko_mlc.compile.backends.cuda.compiler import MachineCode
    from gecko_mlc.compile.backends.cuda.driver import compiling
    from gecko_mlc.compile.backends.cuda.pipeline import PIPELINE
    from gecko_mlc.compile.pipeline import build
    from gecko_mlc.formats.quantization import quantization
    from gecko_mlc.model import Build

    def generate(lowered: Any, target: Any) -> str:
        with compiling(_no_compiler(MachineCode), target.spec, lambda: None) as done:
            build(lowered, target.tvm_target, PIPELINE)
        return str(done[0].source)

    def build_of(config: Any, c: Configuration, target: Any) -> Any:
        return Build(config, quantization(c.scheme, c.state_dtype), target.hardware, c.slots, target.launches)

    return _layout(build_of, generate)


def flat_backends() -> Layout:
    """`quantization.py` and `compile/cuda_*.py`."""
    from gecko_mlc.compile import library
    from gecko_mlc.compile.cuda_backend import compiling
    from gecko_mlc.compile.cuda_compiler import MachineCode
    from gecko_mlc.model import Build
    from gecko_mlc.quantization import quantization

    def generate(lowered: Any, target: Any) -> str:
        with compiling(_no_compiler(MachineCode), target, lambda: None) as done:
            library._build(lowered, target, library.CUDA_PIPELINE)
        return str(done[0].source)

    def build_of(config: Any, c: Configuration, target: Any) -> Any:
        return Build(config, quantization(c.scheme, c.state_dtype), target.machine, c.slots)

    return _layout(build_of, generate)


# The newest first.
LAYOUTS = (target_entries, flat_backends)


def _layout(build_of: Callable[[Any, Configuration, Any], Any], generate: Callable[[Any, Any], str]) -> Layout:
    """By how a layout makes a `Build` for a target, and CUDA's source of lowered functions."""
    from gecko_mlc.compile.pipeline import export, lower
    from gecko_mlc.compile.target import compile_target

    def build(config: Any, c: Configuration) -> tuple[Any, str | None]:
        if c.for_gpu:
            target = compile_target("cuda", architectures=c.target)
        else:
            host = "aarch64-linux-gnu" if c.target.startswith("cortex") else "x86_64-linux-gnu"
            target = compile_target("cpu", host=host, mcpu=c.target)
        module, _ = export(build_of(config, c, target), config.chunk_size)
        lowered = lower(module)
        return lowered, generate(lowered, target) if c.for_gpu else None

    return build


def _no_compiler(machine_code: Any) -> Any:
    """Keeps the source."""

    class NoCompiler:
        name, path = "none", ""

        def compile(self, source: str, architectures: Any, ptx: Any) -> Any:
            return machine_code(source, b"", {})

    return NoCompiler()


if __name__ == "__main__":
    main()
