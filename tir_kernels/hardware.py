"""What a schedule has to know of the processor it is written for.

The class of a target's hardware makes it of what libraries say of the target: `CPU.of(spec)`.
"""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple, Protocol

from gecko_mlc.formats.group_quantization import GroupLayout, GroupQuantization
from gecko_mlc.formats.library import CUDATarget, TargetSpec


class Hardware(Protocol):
    """What the model has to know of any."""

    @property
    def absorb_tile(self) -> int | None:
        """Tokens after which `absorb` is called, where the memory's write is spread over a chunk's tokens (8c); None
        where `end_chunk` does it all."""

    def weight_format(self, group: GroupQuantization) -> GroupLayout:
        """How quantized matrices lie in memory."""


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

    @property
    def absorb_tile(self) -> None:
        """See `Hardware`."""

    @classmethod
    def of(cls, spec: TargetSpec) -> CPU:
        """The one that has the features."""
        features = set(spec.features)

        def pairs(needed: str) -> ByteDot:
            return ByteDot.PAIRS if needed in features else ByteDot.PLAIN

        if spec.triple.startswith("aarch64"):
            return cls(4, 32, ByteDot.NEON if "dotprod" in features else ByteDot.PLAIN)
        if "avx512f" in features:
            return cls(16, 32, ByteDot.VNNI if "avx512vnni" in features else pairs("avx512bw"))
        if "avx" in features:
            return cls(8, 16, ByteDot.VNNI if "avxvnni" in features else pairs("avx2"))
        return cls(4, 16)

    def weight_format(self, group: GroupQuantization) -> GroupLayout:
        """As many outputs side by side as a vector has lanes; codes that bytes can be made of."""
        return GroupLayout(quantization=group, lanes=self.lanes, code_bits=4 if group.bits == 3 else group.bits)

    def width(self, extent: int) -> int:
        """The widest vector that divides a contiguous `extent`."""
        return math.gcd(extent, self.lanes)

    @property
    def tile_rows(self) -> int:
        """Rows of a matrix product's register tile; two vectors wide, operands left over."""
        return 12 if self.registers >= 32 else 6


# Positions of the previous chunk that a GPU absorbs into its memory's sums at a time.
ABSORB_TILE = 64
# Shared memory of a block that needs no asking.
USUAL_SHARED_BYTES = 48 * 1024
_SHARED_MEMORY_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}


class CUDA(NamedTuple):
    """NVIDIA GPUs of some compute capabilities (80 is sm_80), all served by one launch configuration."""

    architectures: tuple[int, ...]

    @property
    def absorb_tile(self) -> int:
        """See `Hardware`."""
        return ABSORB_TILE

    @classmethod
    def of(cls, spec: CUDATarget) -> CUDA:
        """Those of the compute capabilities."""
        return cls(spec.architectures)

    def weight_format(self, group: GroupQuantization) -> GroupLayout:
        """Single rows, codes as in files."""
        return GroupLayout(quantization=group, lanes=1, code_bits=group.bits)

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that a block can have on all of them."""
        return min(_SHARED_MEMORY_KIB.get(architecture, 99) for architecture in self.architectures) * 1024


def divide(extent: Any, size: int) -> Any:
    """Ceiling division of an integer or a TensorIR expression."""
    return (extent + size - 1) // size
