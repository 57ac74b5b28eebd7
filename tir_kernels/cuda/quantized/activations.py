"""How a quantized row of activations lies in memory, for products with quantized weights. NumPy alone.

An activation is an integer of two bytes, to 2^-15 of the largest of its vector: as many as there are codes in 16 bytes
of weights, and in the order of the words of codes.
"""

from typing import Any, NamedTuple

import numpy as np

from gecko_mlc.formats.group_quantization import GroupLayout, WeightFormat
from gecko_mlc.tir_kernels.hardware import divide

# Steps of the largest activation of a vector, and of the upper one of its two bytes.
LARGEST, UPPER = 127 * 256, 256
# An integer that is added to this fp32 is added to its bits.
INTEGERS, INTEGERS_BITS = 1.5 * 2**23, 0x4B400000


class Code(NamedTuple):
    """A code of some words."""

    word: int
    index: int


class Portion(NamedTuple):
    """Some `words` of codes, of which words with a code in each byte are made: their `codes`, the lowest byte first."""

    words: int
    codes: list[list[Code]]


def portion(layout: GroupLayout) -> Portion:
    """What a thread makes bytes of: two pairs of codes for a word, where it can be 8 bits apart in their own. At least
    8 codes, as what a thread does for a portion is as much as for that many."""
    half = layout.codes_per_word // 2
    near = [index for index in range(half) if layout.shift(index) + 8 in map(layout.shift, range(half))]
    words = 1 if layout.code_bits == 4 else 2
    if len(near) * 2 == half:
        step = 8 // layout.code_bits
        twos = [(Code(word, index), Code(word, index + step)) for word in range(words) for index in near]
    else:
        pairs = [Code(word, index) for index in range(half) for word in range(words)]
        twos = list(zip(pairs[::2], pairs[1::2], strict=True))
    return Portion(words, [[*two, *(Code(code.word, code.index + half) for code in two)] for two in twos])


def piece_bytes(layout: GroupLayout) -> int:
    """Bytes of a vector's activations that are read at a time: of one product, or of two."""
    return 16 if 4 * layout.codes_per_word % 16 == 0 else 8


class QuantizedRow(NamedTuple):
    """A row of `features` quantized activations for weights of a layout, with so many partial sums of squares."""

    features: int
    layout: GroupLayout
    squares: int = 0

    @property
    def codes(self) -> int:
        """Activations of a vector, as many as codes in 16 bytes."""
        return 4 * self.layout.codes_per_word

    @property
    def vectors(self) -> int:
        """Vectors of a row."""
        return self.features // self.codes

    def floats(self, kind: int) -> int:
        """The word where the vectors' fp32 of a kind begin, or, of kind 3, the sums of squares."""
        return self.features // 2 + kind * self.vectors

    @property
    def words(self) -> int:
        """The words of a row, a multiple of 16 bytes."""
        return divide(self.floats(3) + self.squares, 4) * 4

    def vector_word(self, vector: Any) -> Any:
        """The word where a vector's bytes begin: pieces of four vectors are next to each other."""
        return vector // 4 * (2 * self.codes) + vector % 4 * 4

    def largest(self, values: np.ndarray) -> np.ndarray:
        """The largest magnitude in the vector of each of values [b, features]."""
        vectors = np.abs(values).reshape(len(values), -1, self.codes)
        return vectors.max(-1).repeat(self.codes, -1)

    def pack(self, values: np.ndarray) -> np.ndarray:
        """The rows [b, words] uint32 of values [b, features]: the oracle of `quantize_vectors`."""
        vectors = values.astype(np.float64).reshape(len(values), -1, self.codes)
        largest = np.abs(vectors).max(-1, keepdims=True)
        numbers = np.rint(vectors * (LARGEST / np.where(largest == 0, np.inf, largest))).astype(int)
        upper = (numbers + UPPER // 2) // UPPER
        parts = np.stack([upper, numbers - upper * UPPER], 2)
        packed = np.zeros((len(values), self.words), np.uint32)
        in_order = parts[..., self._order()].astype(np.int8)
        pieces = in_order.reshape(len(values), -1, 4, 2, self.codes // 16, 16).transpose(0, 1, 4, 3, 2, 5)
        packed[:, : self.floats(0)] = np.ascontiguousarray(pieces).reshape(len(values), -1).view(np.uint32)
        floats = packed.view(np.float32)
        for kind in range(2):
            corrections = INTEGERS + self.layout.quantization.largest * parts[:, :, kind].sum(-1)
            floats[:, self.floats(kind) : self.floats(kind + 1)] = corrections
        floats[:, self.floats(2) : self.floats(3)] = largest[..., 0] / LARGEST
        return packed

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """The fp64 values [b, features] of rows [b, words] uint32."""
        pieces = np.ascontiguousarray(packed[:, : self.floats(0)]).view(np.int8).astype(np.float64)
        pieces = pieces.reshape(len(packed), -1, self.codes // 16, 2, 4, 16).transpose(0, 1, 4, 3, 2, 5)
        upper, lower = np.moveaxis(pieces.reshape(len(packed), -1, 2, self.codes), 2, 0)
        values = np.empty_like(upper)
        values[..., self._order()] = upper * UPPER + lower
        factors = packed.view(np.float32)[:, self.floats(2) : self.floats(3), None]
        return (values * factors).reshape(len(packed), -1)

    def consistent(self, packed: np.ndarray) -> bool:
        """Whether what is taken from the vectors' sums is what it has to be for their activations."""
        sums, again = slice(self.floats(0), self.floats(2)), self.pack(self.unpack(packed))
        return np.array_equal(packed[:, sums], again[:, sums])

    def _order(self) -> list[int]:
        """The activation of each byte of a vector."""
        words, codes = portion(self.layout)
        each = self.layout.codes_per_word
        return [
            (begin + code.word) * each + code.index for begin in range(0, 4, words) for word in codes for code in word
        ]


def row_shape(features: int, quantized: QuantizedRow | None) -> tuple[int, str]:
    """How many elements, of which dtype, a row of activations is: fp32 if it is not quantized."""
    return (features, "float32") if quantized is None else (quantized.words, "uint32")


def quantized_row(
    features: int, block_features: int, weights: WeightFormat, rows: int, squares: int = 0
) -> QuantizedRow | None:
    """How blocks that make so many neighbouring activations each quantize them, for the GEMV of up to `rows` rows with
    `weights`. None if they do not: a vector is of one block, and copies are of 16 bytes."""
    if not isinstance(weights, GroupLayout) or (rows > 1 and weights.arithmetic != "float32"):
        return None
    row = QuantizedRow(features, weights, squares)
    fits = features % (4 * row.codes) == 0 and block_features % row.codes == 0 and piece_bytes(weights) == 16
    return row if fits else None
