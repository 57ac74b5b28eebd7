"""A CUDA stream: launches in order, graphs of launches that were recorded once, and reads that wait for no others."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from gecko_mlc.formats.errors import GeckoError

_OF_THIS_THREAD = 1  # cudaStreamCaptureModeThreadLocal
_TO_HOST, _ON_DEVICE = 2, 3  # cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice
_NO_TIMING = 2  # cudaEventDisableTiming


class Stream:
    """Where an engine launches its kernels, in order. Copies on CUDA's default stream wait for it, and it for them."""

    def __init__(self, device: Any, cudart: ctypes.CDLL) -> None:
        self._device, self._cudart, self._handle = device, cudart, ctypes.c_void_p()
        # Places that nothing is read into, by their size.
        self._free: dict[int, list[_Place]] = {}
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

    def copy(self, source: int, destination: int, size: int) -> None:
        """Copy `size` bytes on the device."""
        places = [ctypes.c_void_p(destination), ctypes.c_void_p(source)]
        self.check(self._cudart.cudaMemcpyAsync(*places, ctypes.c_size_t(size), _ON_DEVICE, self._handle))

    def read(self, address: int, size: int) -> Callable[[], bytes]:
        """Begin to read `size` bytes as they will be after all that was launched; what is returned waits for them."""
        free = self._free.setdefault(size, [])
        place = free.pop() if free else self._new_place(size)
        arguments = [place.memory, ctypes.c_void_p(address), ctypes.c_size_t(size), _TO_HOST, self._handle]
        self.check(self._cudart.cudaMemcpyAsync(*arguments))
        self.check(self._cudart.cudaEventRecord(place.event, self._handle))
        return _Reading(self, place, size, free)

    def free_memory(self) -> int:
        """Bytes of the device that may still be allocated."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.check(self._cudart.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    def wait(self, event: ctypes.c_void_p) -> None:
        """Wait for an event."""
        self.check(self._cudart.cudaEventSynchronize(event))

    def synchronize(self) -> None:
        """Wait until all that was launched has ended. Raises `GeckoError` when any of it failed."""
        self.check(self._cudart.cudaStreamSynchronize(self._handle))

    def check(self, status: int) -> None:
        """Raise `GeckoError` for a status of CUDA's that is not success."""
        if status:
            describe = self._cudart.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            raise GeckoError(f"CUDA: {describe(status).decode()} (error {status})")

    def _new_place(self, size: int) -> _Place:
        place = _Place(ctypes.c_void_p(), ctypes.c_void_p())
        # Only into memory that cannot be moved does a copy go on by itself.
        self.check(self._cudart.cudaMallocHost(ctypes.byref(place.memory), ctypes.c_size_t(size)))
        self.check(self._cudart.cudaEventCreateWithFlags(ctypes.byref(place.event), _NO_TIMING))
        return place


class _Place(NamedTuple):
    """Pinned memory of the host, and the event after a copy into it."""

    memory: ctypes.c_void_p
    event: ctypes.c_void_p


class _Reading:
    """Bytes on their way. Whether they were waited for or not, the next copy into their place comes after theirs."""

    def __init__(self, stream: Stream, place: _Place, size: int, free: list[_Place]) -> None:
        self._stream, self._place, self._size, self._free = stream, place, size, free

    def __call__(self) -> bytes:
        self._stream.wait(self._place.event)
        return ctypes.string_at(self._place.memory, self._size)

    def __del__(self) -> None:
        self._free.append(self._place)


_streams: dict[int, Stream] = {}


def stream_of(device: Any, cudart: ctypes.CDLL) -> Stream:
    """The process's stream of a GPU. There is one, as TVM hands the same workspaces to all libraries."""
    if device.index not in _streams:
        _streams[device.index] = Stream(device, cudart)
    return _streams[device.index]
