"""What a device can do at most, measured: the limits that speeds are compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.formats.memory import MemoryShortage, is_shortage
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.devices.memory import free_memory
from gecko_mlc.runtime.players.player import Player

READ_BYTES = 2**29
# Rows of the matrices; processors differ in which of these they multiply fastest.
SIZES = (1024, 2048)


class Ceilings(BaseModel):
    """What this machine can do: of a CPU reading memory, and matrix products with all usable cores; of another device
    bytes that a copy reads and writes.

    Products in fp32 are measured. Those of bytes are derived from them, by how many multiplications of bytes the vector
    unit does in place of one in fp32.
    """

    memory_gb_per_second: float
    matmul_gflop_per_second: float | None
    byte_matmul_gop_per_second: float | None = None


class Machine:
    """Measures what this machine can do, as often as asked: on one shared with others it changes.

    Raises `MemoryShortage` where there is too little memory for it.
    """

    def __init__(self) -> None:
        cores = host.usable_cores()
        try:
            # Large enough that no cache holds it; a page was written for each that is read.
            self._parts = np.array_split(np.ones(READ_BYTES // 8, np.uint64), cores * 4)
            matrices = [np.ones((size, size), np.float32) for size in SIZES]
            self._pool = ThreadPoolExecutor(cores)
            self._matrix = max(matrices, key=lambda matrix: max(_multiply(matrix) for _ in range(3)))
            self.measure()
        except Exception as error:
            if is_shortage(error):
                raise MemoryShortage({"measuring what this machine can do": READ_BYTES}, free_memory()) from None
            raise

    def measure(self) -> Ceilings:
        """The best of three, of reading 512 MiB with all cores and of a matrix product."""
        read = math.inf
        # Idle threads of the engine, and then of BLAS, wait for more work, spinning, for hundredths of a second.
        time.sleep(0.1)
        product = max(_multiply(self._matrix) for _ in range(3))
        time.sleep(0.1)
        for _ in range(3):
            begun = time.perf_counter()
            list(self._pool.map(np.bitwise_or.reduce, self._parts))
            read = min(read, time.perf_counter() - begun)
        return Ceilings(
            memory_gb_per_second=READ_BYTES / read / 1e9,
            matmul_gflop_per_second=product,
            byte_matmul_gop_per_second=host.byte_products() * product,
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


def best(measured: Sequence[Ceilings]) -> Ceilings:
    """The largest of each limit in several measurements: what slowed the others down is not the machine's."""

    def largest(limits: list[float | None]) -> float | None:
        return max((limit for limit in limits if limit is not None), default=None)

    return Ceilings(
        memory_gb_per_second=max(c.memory_gb_per_second for c in measured),
        matmul_gflop_per_second=largest([c.matmul_gflop_per_second for c in measured]),
        byte_matmul_gop_per_second=largest([c.byte_matmul_gop_per_second for c in measured]),
    )


def _multiply(matrix: np.ndarray) -> float:
    """GFLOP/s of the square of a matrix."""
    begun = time.perf_counter()
    np.matmul(matrix, matrix)
    return 2 * len(matrix) ** 3 / (time.perf_counter() - begun) / 1e9
