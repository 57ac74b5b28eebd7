"""What a device can do at most, measured: the limits that speeds are compared with."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.players.player import Player


class Ceilings(BaseModel):
    """What this machine can do: of a CPU reading memory, and an fp32 matrix product, with all usable cores; of another
    device bytes that a copy reads and writes."""

    memory_gb_per_second: float
    matmul_gflop_per_second: float | None


class Machine:
    """Measures what this machine can do, as often as asked: on one shared with others it changes."""

    def __init__(self) -> None:
        cores = host.usable_cores()
        # Large enough that no cache holds it; a page was written for each that is read.
        self._parts = np.array_split(np.ones(2**26, np.uint64), cores * 4)
        self._bytes = sum(part.nbytes for part in self._parts)
        self._matrix = np.ones((1024, 1024), np.float32)
        self._pool = ThreadPoolExecutor(cores)
        self.measure()

    def measure(self) -> Ceilings:
        """The best of three, of reading 512 MiB with all cores and of a product of 1024³."""
        read, product = math.inf, math.inf
        # Idle threads of the engine, and then of BLAS, wait for more work, spinning, for hundredths of a second.
        time.sleep(0.1)
        for _ in range(3):
            begun = time.perf_counter()
            np.matmul(self._matrix, self._matrix)
            product = min(product, time.perf_counter() - begun)
        time.sleep(0.1)
        for _ in range(3):
            begun = time.perf_counter()
            list(self._pool.map(np.bitwise_or.reduce, self._parts))
            read = min(read, time.perf_counter() - begun)
        return Ceilings(
            memory_gb_per_second=self._bytes / read / 1e9,
            matmul_gflop_per_second=2 * 1024**3 / product / 1e9,
        )


class Device:
    """Measures what the device of a player can do that is not the host."""

    def __init__(self, player: Player) -> None:
        self._player = player
        shape = (2**28,)
        source, destination = player.allocate(
            [TensorSpec(name=n, shape=shape, dtype="float32") for n in ("from", "to")]
        )
        self._pairs = ((source, destination),)
        self.measure()

    def measure(self) -> Ceilings:
        """The best of three, of copying 1 GiB five times."""
        best = math.inf
        for _ in range(3):
            self._player.synchronize()
            begun = time.perf_counter()
            for _ in range(5):
                self._player.copy(self._pairs)
            self._player.synchronize()
            best = min(best, (time.perf_counter() - begun) / 5)
        return Ceilings(memory_gb_per_second=2 * 2**30 / best / 1e9, matmul_gflop_per_second=None)


def median(measured: Sequence[Ceilings]) -> Ceilings:
    """The median of several measurements."""
    products = [c.matmul_gflop_per_second for c in measured if c.matmul_gflop_per_second is not None]
    return Ceilings(
        memory_gb_per_second=statistics.median(c.memory_gb_per_second for c in measured),
        matmul_gflop_per_second=statistics.median(products) if products else None,
    )
