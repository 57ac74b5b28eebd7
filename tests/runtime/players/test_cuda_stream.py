"""Reads from a GPU that wait for no later launch, on a CUDA runtime that does nothing before it has to."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.players.cuda_stream import Stream


class CUDA:
    """CUDA's functions: a stream's work is done when something waits for it."""

    def __init__(self) -> None:
        self.queue: list[tuple[Any, Callable[[], None]]] = []
        self.memory: list[Any] = []
        self.events = self.done = 0

    def cudaSetDevice(self, index: int) -> int:
        return 0

    def cudaStreamCreate(self, stream: Any) -> int:
        return 0

    def cudaMallocHost(self, pointer: Any, size: ctypes.c_size_t) -> int:
        self.memory.append(ctypes.create_string_buffer(size.value))
        pointer._obj.value = ctypes.addressof(self.memory[-1])
        return 0

    def cudaEventCreateWithFlags(self, event: Any, flags: int) -> int:
        self.events += 1
        event._obj.value = self.events
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: ctypes.c_size_t, kind: int, stream: Any) -> int:
        self.queue.append((None, lambda: ctypes.memmove(to, source, size.value) and None))
        return 0

    def cudaEventRecord(self, event: ctypes.c_void_p, stream: Any) -> int:
        self.queue.append((event.value, lambda: None))
        return 0

    def cudaEventSynchronize(self, event: ctypes.c_void_p) -> int:
        last = max((i for i, (mark, _) in enumerate(self.queue) if mark == event.value), default=-1)
        for _, work in self.queue[: last + 1]:
            work()
        self.done += last + 1
        del self.queue[: last + 1]
        return 0

    def launch(self, work: Callable[[], None]) -> None:
        self.queue.append((None, work))


class Device:
    """A number on the device, and a stream whose launches count it up."""

    def __init__(self) -> None:
        self.cuda, self.number = CUDA(), ctypes.c_int32(0)
        self.stream = Stream(SimpleNamespace(index=0), self.cuda)  # type: ignore[arg-type]

    def count(self) -> None:
        def work() -> None:
            self.number.value += 1

        self.cuda.launch(work)

    def read(self) -> Callable[[], int]:
        read = self.stream.read(ctypes.addressof(self.number), 4)
        return lambda: int.from_bytes(read(), "little")


def test_a_read_is_of_its_time_and_waits_for_nothing_later() -> None:
    device = Device()
    device.count()
    first = device.read()
    device.count()
    second = device.read()
    device.count()
    assert device.number.value == 0
    assert first() == 1
    assert device.number.value == 1
    assert (second(), second(), first()) == (2, 2, 1)
    assert device.number.value == 2


def test_memory_is_taken_again_from_reads_that_were_dropped_too() -> None:
    """And what a dropped read brings late does not come in the way."""
    device = Device()
    for i in range(10):
        device.count()
        dropped = device.read()
        del dropped
        gc.collect()
        device.count()
        assert device.read()() == 2 * (i + 1)
    assert len(device.cuda.memory) == device.cuda.events == 1


def test_a_fault_is_told() -> None:
    device = Device()
    device.cuda.cudaMemcpyAsync = lambda *_: 700  # type: ignore[method-assign]
    device.cuda.cudaGetErrorString = lambda status: b"an illegal memory access"  # type: ignore[attr-defined]
    with pytest.raises(GeckoError, match=r"CUDA: an illegal memory access \(error 700\)"):
        device.read()
