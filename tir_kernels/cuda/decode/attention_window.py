"""The positions that a decoded token attends to (specification 2.6), and the parts of them that blocks take."""

from typing import NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.expressions import Expr

# Blocks of `attend` for a sequence: three on each of the 132 multiprocessors of the large GPUs.
BLOCKS_PER_SM, BLOCKS = 3, 396
# Positions of a part at least.
SHORTEST = 8


def parts(chunk_size: int, heads: int) -> int:
    """Parts that a window is split into; at least 32 positions each if the window is full."""
    return max(1, min(-(-BLOCKS // heads), 2 * chunk_size // 32))


def visible_positions(chunk: Expr, offset: Expr, chunk_size: int) -> Expr:
    """Positions that a token sees: the previous chunk and then its own, up to itself."""
    return T.Select(chunk >= 1, chunk_size, 0) + offset + 1


def part_length(visible: Expr, count: int) -> Expr:
    """Positions of each of `count` parts. The last parts may have fewer, or none, as short ones do not pay."""
    return T.max((visible + count - 1) // count, SHORTEST)


class Part(NamedTuple):
    """The positions of a block: `cached` ones in the cache of a slot from the window's position `first` on, of which
    the previous chunk's `previous` ones come first."""

    slot: Expr
    parity: Expr
    previous: Expr
    first: Expr
    cached: Expr

    def buffer(self, k: Expr) -> Expr:
        """The chunk buffer of the window's position k."""
        return T.Select(k < self.previous, 1 - self.parity, self.parity)

    def offset(self, k: Expr) -> Expr:
        """The offset of the window's position k in its chunk buffer."""
        return T.Select(k < self.previous, k, k - self.previous)
