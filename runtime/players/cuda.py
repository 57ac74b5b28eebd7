"""The player of NVIDIA GPUs: TVM's virtual machine once, recorded as one CUDA graph."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gecko_mlc.cuda_toolkit import MINIMUM_DRIVER, RUNTIME_LIBRARY
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import CUDATarget, Metadata, TensorSpec
from gecko_mlc.formats.weights import NUMPY_DTYPES
from gecko_mlc.runtime.devices import nvidia
from gecko_mlc.runtime.players import tvm_runtime
from gecko_mlc.runtime.players.cuda_stream import stream_of
from gecko_mlc.runtime.players.player import Tensor
from gecko_mlc.runtime.players.tvm import TVMPlayer


class _Copying(NamedTuple):
    """What is copied, kept so that its identity stays its own, and the graph that copies it."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    graph: Callable[[], None]


class CUDAPlayer(TVMPlayer):
    """Plays a library with machine code for this machine's first NVIDIA GPU."""

    asynchronous, on_host, survives_fork = True, False, False
    tvm_libraries = (*TVMPlayer.tvm_libraries, tvm_runtime.CUDA_LIBRARY)
    requirements = ("nvidia-cuda-runtime",)
    needs = f"NVIDIA's driver for CUDA {MINIMUM_DRIVER[0]}"
    device = "cuda"

    def __init__(self, path: Path, metadata: Metadata) -> None:
        cudart = tvm_runtime.load_cuda()
        super().__init__(path, metadata)
        self._stream = stream_of(self._device, cudart)
        # The launches of calls that come again, by functions and shapes.
        self._graphs: dict[tuple[Any, ...], Callable[[], None]] = {}
        self._copies: dict[int, _Copying] = {}

    @classmethod
    def usable(cls) -> bool:
        """See `Player`."""
        return nvidia.usable() is not None

    @classmethod
    def device_name(cls) -> str | None:
        """See `Player`."""
        return nvidia.name()

    @classmethod
    def machine(cls) -> list[Any]:
        """See `Player`."""
        return [nvidia.capability()]

    @classmethod
    def installed(cls) -> int | None:
        """The compute capability, as 80 for 8.0."""
        return nvidia.capability()

    @classmethod
    def rows(cls) -> list[tuple[str, str]]:
        """See `Player`."""
        needed, driver, capability = _version(MINIMUM_DRIVER), nvidia.driver_version(), nvidia.capability()
        if driver is None:
            driver_row = f"none (to run on NVIDIA GPUs: install the driver, for CUDA {needed} or later)"
        elif driver < MINIMUM_DRIVER:
            driver_row = f"for CUDA {_version(driver)}, too old: update it to one for CUDA {needed} or later"
        else:
            driver_row = f"for CUDA {_version(driver)}"
        missing = f"no {RUNTIME_LIBRARY} (to run on NVIDIA GPUs: pip install nvidia-cuda-runtime)"
        return [
            ("gpu", "none" if capability is None else f"{nvidia.name()}, sm_{capability}"),
            ("gpu driver", driver_row),
            ("cuda runtime", nvidia.find_cudart() or missing),
            ("tvm's cuda runtime", _tvm_library()),
        ]

    @classmethod
    def check(cls, path: Path, metadata: Metadata) -> None:
        """See `Player`."""
        super().check(path, metadata)
        target = metadata.target
        assert isinstance(target, CUDATarget)
        version, capability = nvidia.driver_version(), nvidia.capability()
        if version is None or capability is None:
            raise GeckoError(
                f"{path}: compiled for NVIDIA GPUs, and this machine has none, or no driver (libcuda.so.1);"
                " compile for its CPU with --device cpu"
            )
        if version < target.minimum_cuda:
            raise GeckoError(
                f"{path}: needs a driver for CUDA {_version(target.minimum_cuda)}, this one is for CUDA"
                f" {_version(version)}; update the driver"
            )
        if not target.runs_on(capability):
            compiled = ", ".join(f"sm_{a}" for a in target.architectures)
            raise GeckoError(
                f"{path}: compiled for {compiled}, this GPU ({nvidia.name()}) is sm_{capability}",
                f"compile it with --arch sm_{capability}",
            )

    def free_memory(self) -> int | None:
        """See `Player`."""
        return self._stream.free_memory()

    def allocate(self, tensors: Sequence[TensorSpec]) -> list[Tensor]:
        """See `Player`."""
        return [self._runtime.empty(t.shape, t.dtype, self._device) for t in tensors]

    def fetch(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """See `Player`."""
        shape, dtype = tuple(tensor.shape), NUMPY_DTYPES[str(tensor.dtype)]
        read = self._stream.read(tensor.data_ptr(), math.prod(shape) * dtype.itemsize)
        return lambda: np.frombuffer(read(), dtype).reshape(shape)

    def copy(self, pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
        """See `Player`. One graph from the second time on."""
        if (copying := self._copies.get(id(pairs))) is not None:
            copying.graph()
            return
        sizes = [math.prod(s.shape) * NUMPY_DTYPES[str(s.dtype)].itemsize for s, _ in pairs]

        def copies() -> None:
            for (source, destination), size in zip(pairs, sizes, strict=True):
                self._stream.copy(source.data_ptr(), destination.data_ptr(), size)

        copies()
        if pairs:
            self._copies[id(pairs)] = _Copying(pairs, self._stream.record(copies))

    def play(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """See `Player`."""
        self._stream.run(functools.partial(super().play, functions, inputs))

    def replay(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """See `Player`. One graph from the second time on."""
        key = (*functions, *(tuple(tensor.shape) for tensor in inputs))
        if (graph := self._graphs.get(key)) is not None:
            graph()
            return
        self.play(functions, inputs)
        self._graphs[key] = self._stream.record(functools.partial(super().play, functions, inputs))

    def synchronize(self) -> None:
        """See `Player`."""
        self._stream.synchronize()


def _tvm_library() -> str:
    tvm = importlib.util.find_spec("tvm")
    if tvm is None or tvm.origin is None:
        return "no tvm (pip install gecko-mlc)"
    library = Path(tvm.origin).parent / "lib" / tvm_runtime.CUDA_LIBRARY
    return str(library) if library.is_file() else f"no {library} (TVM's packages for Linux have it)"


def _version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
