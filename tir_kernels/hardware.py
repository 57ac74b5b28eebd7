"""What a schedule has to know of the processor it is written for."""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple


class ByteDot(enum.Enum):
    """Instructions for dot products of bytes: x86's VNNI or AVX2's and AVX-512's on pairs, Arm's `sdot`, or none."""

    VNNI = "vnni"
    PAIRS = "pairs"
    NEON = "neon"
    PLAIN = "plain"


class CPU(NamedTuple):
    """The vector unit of a CPU: fp32 `lanes` of a register, how many `registers` there are, and `byte_dot`."""

    lanes: int = 16
    registers: int = 32
    byte_dot: ByteDot = ByteDot.PLAIN

    def width(self, extent: int) -> int:
        """The widest vector that divides a contiguous `extent`."""
        return math.gcd(extent, self.lanes)

    @property
    def tile_rows(self) -> int:
        """Rows of a matrix product's register tile; two vectors wide, operands left over."""
        return 12 if self.registers >= 32 else 6


# Shared memory of a block that needs no asking.
USUAL_SHARED_BYTES = 48 * 1024
_SHARED_MEMORY_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}


class CUDA(NamedTuple):
    """NVIDIA GPUs of some compute capabilities (80 is sm_80), all served by one launch configuration."""

    architectures: tuple[int, ...]

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that a block can have on all of them."""
        return min(_SHARED_MEMORY_KIB.get(architecture, 99) for architecture in self.architectures) * 1024


def divide(extent: Any, size: int) -> Any:
    """Ceiling division of an integer or a TensorIR expression."""
    return (extent + size - 1) // size
