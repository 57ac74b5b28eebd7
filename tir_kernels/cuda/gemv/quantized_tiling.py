"""How a GEMV with quantized weights is cut into blocks, tiles and units, and where they lie in shared memory."""

import math

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue
from gecko_mlc.tir_kernels.cuda.gemv.schedule import BLOCKS, WARPS, shared_elements
from gecko_mlc.tir_kernels.cuda.quantized.activations import piece_bytes, portion
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import CUDA, divide

# Rows of weights that are multiplied at a time, those of a copy, and the vectors of each in a unit of copies.
TILE, ROWS, UNIT = 16, 4, 8
# Tiles of a block at most, for room for their sums.
MAX_TILES = 32
# Units of a warp that are on their way, where there is room for them, by the bits of a code. Before the predecessor has
# ended they are half of all at most, or waiting for it would be behind them.
DEPTH = {3: 3, 4: 4, 8: 5}


class Tiling:
    """A team of `split` warps shares the inputs of a tile: 16 rows of a weight, or 8 of each of `count` = 2.

    `norm` is the one that the kernel itself computes, of activations that it quantizes itself. Blocks make
    multiples of a tile, or of `multiple` outputs.
    """

    def __init__(
        self,
        features: int,
        extents: tuple[int, ...],
        layout: GroupLayout,
        count: int,
        norm: NormPrologue | None,
        hardware: CUDA,
        multiple: int | None,
    ) -> None:
        self.layout = layout
        # Vectors of 16 bytes: of a group, of a row, and codes of each.
        self.group_vectors = layout.words_per_group // 4
        self.vectors = layout.quantization.groups(features) * self.group_vectors
        self.codes = 4 * layout.codes_per_word
        units, self.tile_outputs = divide(self.vectors, UNIT), TILE // count
        self.split = min(WARPS, 1 << (units - 1).bit_length())
        self.teams, self.rounds = WARPS // self.split, divide(units, self.split)
        # A block's outputs are a share of all `granules` of so many outputs.
        self.blocks = share_blocks([divide(extent, self.teams * self.tile_outputs) for extent in extents])
        self.granule = multiple or self.tile_outputs
        self.granules = [divide(extent, self.granule) for extent in extents]
        most = max(divide(extent, number) for extent, number in zip(self.granules, self.blocks, strict=True))
        self.block_outputs = divide(most * self.granule, self.tile_outputs) * self.tile_outputs
        # Chunks of four vectors, which are multiplied at once.
        self.unit_chunks = UNIT // 4
        self.chunks = self.rounds * self.split * self.unit_chunks

        # In shared memory, in values of the scales' dtype: the activations, pieces of a chunk's vectors next to each
        # other, as many zeros as a unit's have, then the ring, for each warp units of codes, each with its scales after
        # it.
        self.scale_size = np.dtype(layout.quantization.scale_dtype).itemsize
        self.vector_elements, self.piece = 16 // self.scale_size, piece_bytes(layout) // self.scale_size
        self.pieces = self.codes // piece_bytes(layout)
        self.zeros = self.chunks * self.pieces * 8 * self.piece
        self.unit_pieces = self.unit_chunks * self.pieces * 8 * self.piece
        self.ring = self.zeros + self.unit_pieces
        self.scale_bytes = UNIT // self.group_vectors * self.scale_size
        self.unit_codes = TILE * UNIT * self.vector_elements
        self.unit_values = self.unit_codes + TILE * self.scale_bytes // self.scale_size
        # Of 4 bytes: moments, of each vector what is taken from its sums (of upper bytes, of lower ones) and their
        # factor, and partial sums [count, outputs, split].
        single_group = norm is not None and norm.groups == 1
        self.corrections = 2 * WARPS if single_group else divide(2 * norm.groups, 4) * 4 if norm else 0
        self.factors = self.corrections + 2 * self.chunks * 4
        self.partial = self.factors + self.chunks * 4
        self.scratch = self.partial + count * self.block_outputs * self.split
        half = (hardware.shared_memory - 1024) // 2
        room = half - self.ring * self.scale_size - 4 * self.scratch
        most_units = divide(self.block_outputs, self.tile_outputs * self.teams) * self.rounds
        fitting = room // (WARPS * self.unit_values * self.scale_size)
        self.depth = max(1, min(DEPTH[layout.code_bits], most_units, fitting))
        self.early = max(1, min(self.depth, most_units // 2))
        # Three blocks do not fit.
        third = (hardware.shared_memory // 3 - 4 * self.scratch) // self.scale_size
        needed = max(self.ring + WARPS * self.depth * self.unit_values, third)
        self.shared = shared_elements(needed, self.scale_size, self.scratch)

        # In memory: words of a row, and where its scales begin.
        self.offset, self.row_words = layout.scale_offset(features), layout.shape(1, features)[1]
        # From a round's codes to the next one's, and from a tile's to the next of the team.
        self.round_words, self.tile_words = self.split * UNIT * 4, self.teams * self.tile_outputs * self.row_words
        self.round_scales = self.split * self.scale_bytes // 4

        # Portions of codes whose activations a thread quantizes, for its own warp, and loads of them.
        self.per_vector = 4 // portion(layout).words
        self.portion_size = self.codes // self.per_vector
        self.portions = divide(self.rounds * UNIT * self.per_vector, 32)
        self.part = math.gcd(features, self.portion_size, 4)

    def present(self, output: Expr, stop: Expr, within: Expr) -> Expr:
        """Whether an output is the block's, and a part of its row exists."""
        conditions = [output < stop]
        if self.vectors != self.rounds * self.split * UNIT:
            conditions.append(within)
        return T.Cast("int32", tirx.all(*conditions))

    def first_output(self, block: Expr, matrix: int) -> Expr:
        """The first of a block's outputs."""
        return block * self.granules[matrix] // self.blocks[matrix] * self.granule

    def vector(self, n: Expr, tx: Expr) -> Expr:
        """The vector of a thread's portion n, one of its warp's in turn."""
        place = n * 32 + tx % 32
        unit = place // (UNIT * self.per_vector) * self.split + tx // 32 % self.split
        return unit * UNIT + place % (UNIT * self.per_vector) // self.per_vector

    def first_input(self, n: Expr, tx: Expr) -> Expr:
        """The first input of a thread's portion n."""
        return self.vector(n, tx) * self.codes + tx % self.per_vector * self.portion_size


def share_blocks(tiles: list[int]) -> list[int]:
    """Blocks for each of some matrices of so many tiles: no more than there are at a time, if they suffice."""
    blocks = [divide(extent, MAX_TILES) for extent in tiles]
    while sum(blocks) < min(BLOCKS, sum(tiles)):
        blocks[max(range(len(tiles)), key=lambda i: tiles[i] / blocks[i])] += 1
    return blocks
