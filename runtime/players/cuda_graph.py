"""A CUDA stream, and graphs: launches that were recorded once and are launched as one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from gecko_mlc.formats.errors import GeckoError

_OF_THIS_THREAD = 1  # cudaStreamCaptureModeThreadLocal


class Stream:
    """Where an engine launches its kernels, in order. Copies on CUDA's default stream wait for it, and it for them."""

    def __init__(self, device: Any, cudart: ctypes.CDLL) -> None:
        self._device, self._cudart, self._handle = device, cudart, ctypes.c_void_p()
        self.check(cudart.cudaSetDevice(device.index))
        self.check(cudart.cudaStreamCreate(ctypes.byref(self._handle)))

    def run(self, launches: Callable[[], None]) -> None:
        """Launch on this stream, from whatever thread."""
        import tvm_ffi  # Loaded by TVM by now, and without PyTorch.

        with tvm_ffi.use_raw_stream(self._device, self._handle.value):
            launches()

    def record(self, launches: Callable[[], None]) -> Callable[[], None]:
        """A graph of what `launches` launches, which is not run now; calling the graph runs it.

        It keeps the addresses of the recording. What a first call loads or allocates must have been before.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self._cudart.cudaStreamBeginCapture(self._handle, _OF_THIS_THREAD))
        try:
            self.run(launches)
        finally:
            status = self._cudart.cudaStreamEndCapture(self._handle, ctypes.byref(graph))
        self.check(status)
        flags = ctypes.c_ulonglong(0)
        self.check(self._cudart.cudaGraphInstantiate(ctypes.byref(executable), graph, flags))
        self.check(self._cudart.cudaGraphDestroy(graph))
        # Graphs live as long as the process: destroying one while it runs would be a fault.
        return lambda: self.check(self._cudart.cudaGraphLaunch(executable, self._handle))

    def synchronize(self) -> None:
        """Wait until all that was launched has ended. Raises `GeckoError` when any of it failed."""
        self.check(self._cudart.cudaStreamSynchronize(self._handle))

    def check(self, status: int) -> None:
        """Raise `GeckoError` for a status of CUDA's that is not success."""
        if status:
            describe = self._cudart.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            raise GeckoError(f"CUDA: {describe(status).decode()} (error {status})")


_streams: dict[int, Stream] = {}


def stream_of(device: Any, cudart: ctypes.CDLL) -> Stream:
    """The process's stream of a GPU. There is one, as TVM hands the same workspaces to all libraries."""
    if device.index not in _streams:
        _streams[device.index] = Stream(device, cudart)
    return _streams[device.index]
