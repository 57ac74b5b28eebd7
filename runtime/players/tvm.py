"""The player of CPUs: TVM's virtual machine, whose calls are done when they return."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import PARAMETRIC_FUNCTIONS, Metadata, TensorSpec, functions_of
from gecko_mlc.runtime.devices import host, memory
from gecko_mlc.runtime.devices.binaries import check_architecture, check_c_library, check_features
from gecko_mlc.runtime.players import tvm_runtime
from gecko_mlc.runtime.players.player import Player, Tensor
from gecko_mlc.runtime.players.threads import LibraryThreads
from gecko_mlc.runtime.state.arena import arena


class TVMPlayer(Player):
    """Plays a shared library on the CPU. Others of TVM's devices are subclasses."""

    asynchronous, on_host, survives_fork = False, True, True
    tvm_libraries: ClassVar[tuple[str, ...]] = ("libtvm_runtime.so", "libtvm_runtime_extra.so")
    # TVM's name of the device.
    device: ClassVar[str] = "cpu"

    def __init__(self, path: Path, metadata: Metadata) -> None:
        tvm = tvm_runtime.load()
        from tvm.runtime.vm import VirtualMachine

        self._runtime, self._device = tvm.runtime, tvm.runtime.device(self.device, 0)
        # `tensor.copyfrom` copies bf16 within the host first, at a tenth of the speed.
        self._copy_bytes = tvm.get_global_func("runtime.TVMTensorCopyFromBytes")
        try:
            self._machine = VirtualMachine(tvm.runtime.load_module(str(path.resolve())), self._device)
        except Exception as error:  # TVM and the dynamic linker raise many kinds.
            raise GeckoError(f"{path}: not a library of gecko-mlc: {str(error).strip().splitlines()[-1]}") from None
        self._functions = {name: self._machine[name] for name in functions_of(metadata.absorb_tile)}
        self._threads = LibraryThreads(path)

    @classmethod
    def usable(cls) -> bool:
        """See `Player`."""
        return True

    @classmethod
    def device_name(cls) -> str | None:
        """See `Player`."""
        return host.cpu_name()

    @classmethod
    def machine(cls) -> list[Any]:
        """See `Player`."""
        return [host.cpu_name(), sorted(host.cpu_features() or ())]

    @classmethod
    def check(cls, path: Path, metadata: Metadata) -> None:
        """See `Player`."""
        check_architecture(path)
        check_c_library(path, metadata.target)
        check_features(path, metadata.target)
        tvm_runtime.check_version(path, metadata)

    def free_memory(self) -> int | None:
        """See `Player`."""
        return memory.free_memory()

    def allocate(self, tensors: Sequence[TensorSpec]) -> list[Tensor]:
        """See `Player`. All are one piece of memory."""
        # NumPy has no bfloat16 to exchange.
        pieces = [self._runtime.from_dlpack(piece) for piece in arena(tensors)]
        return [self.view(piece, t.shape, t.dtype) for piece, t in zip(pieces, tensors, strict=True)]

    def view(self, tensor: Tensor, shape: tuple[int, ...], dtype: str, offset: int = 0) -> Tensor:
        """See `Player`."""
        # A view of a scalar keeps one axis.
        return tensor._create_view(shape or (1,), dtype, offset)

    def upload(self, tensor: Tensor, array: np.ndarray) -> None:
        """See `Player`."""
        array = np.ascontiguousarray(array)
        self._copy_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def download(self, tensor: Tensor) -> np.ndarray:
        """See `Player`."""
        value: np.ndarray = tensor.numpy()
        return value

    def fetch(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """See `Player`."""
        value = self.download(tensor)
        return lambda: value

    def copy(self, pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
        """See `Player`."""
        for source, destination in pairs:
            source.copyto(destination)

    def bind(self, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """See `Player`."""
        self._state, self._parameters = tuple(state), tuple(parameters)

    def play(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """See `Player`."""
        self._threads.use(self.threads)
        for name in functions:
            parameters = self._parameters if name in PARAMETRIC_FUNCTIONS else ()
            self._functions[name](*inputs, *self._state, *parameters)

    def replay(self, functions: Sequence[str], inputs: Sequence[Tensor]) -> None:
        """See `Player`."""
        self.play(functions, inputs)

    def synchronize(self) -> None:
        """See `Player`."""
