"""Rows of activations that the kernel which makes them rounds, once for all blocks that read them, for CUDA.

A row is uint32 words: its activations as bytes, as `code_bytes` orders them, then three fp32 of each vector: what is
taken from its sums of upper bytes, of lower ones, and its factor; then partial sums of squares, for an RMS norm.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from gecko_mlc.tir_kernels.cuda.code_bytes import (
    INTEGERS,
    LARGEST,
    UPPER,
    piece_bytes,
    portion,
    store_activations_as_bytes,
)
from gecko_mlc.tir_kernels.cuda.intrinsics import lane_maximum, lane_sum
from gecko_mlc.tir_kernels.machine import divide
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.group_quantization import GroupLayout, WeightFormat

Expr = Any


class RoundedRow(NamedTuple):
    """A row of `features` activations for weights of a layout, with so many partial sums of squares."""

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
        """The words of a row, whole 16 bytes."""
        return divide(self.floats(3) + self.squares, 4) * 4

    def vector_word(self, vector: Expr) -> Expr:
        """The word where a vector's bytes begin: pieces of four vectors are next to each other."""
        return vector // 4 * (2 * self.codes) + vector % 4 * 4

    def pack(self, values: np.ndarray) -> np.ndarray:
        """The rows [b, words] uint32 of values [b, features]: the oracle of `round_vectors`."""
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

    def _order(self) -> list[int]:
        """The activation of each byte of a vector."""
        words, codes = portion(self.layout)
        each = self.layout.codes_per_word
        return [
            (begin + code.word) * each + code.index for begin in range(0, 4, words) for word in codes for code in word
        ]


def row_elements(features: int, rounded: RoundedRow | None) -> tuple[int, str]:
    """How many elements, of which dtype, a row of activations is: fp32 if it is not rounded."""
    return (features, "float32") if rounded is None else (rounded.words, "uint32")


def rounded_row(features: int, together: int, weights: WeightFormat, rows: int, squares: int = 0) -> RoundedRow | None:
    """How blocks that make so many neighbouring activations `together` round them, for the product of up to `rows` rows
    with `weights`. None if they do not: a vector is of one block, and copies are of 16 bytes."""
    if not isinstance(weights, GroupLayout) or (rows > 1 and weights.arithmetic != "float32"):
        return None
    row = RoundedRow(features, weights, squares)
    whole = features % (4 * row.codes) == 0 and together % row.codes == 0 and piece_bytes(weights) == 16
    return row if whole else None


@functools.cache
def round_portion(layout: GroupLayout):  # type: ignore[no-untyped-def]
    """An inline (values, begin, destination, index, present, keep): a vector's portion `index`, `values` from `begin`
    on, into the vector's bytes at `destination`. All lanes of a warp take part, and if it is present keep(kind, fp32)
    is called by one of a vector's. The three kinds: what is taken from its sums, and its factor."""
    per_vector = 4 // portion(layout).words
    size = 4 * layout.codes_per_word // per_vector
    store_portion = store_activations_as_bytes(layout)

    @T.inline
    def compute(values, begin, destination, index, present, keep):
        largest = T.alloc_buffer((1,), scope="local")
        sums = T.alloc_buffer((2,), "int32", scope="local")
        largest[0] = T.float32(0)
        for i in T.unroll(size):
            largest[0] = T.max(largest[0], T.abs(values[begin + i]))
        largest[0] = lane_maximum(per_vector)(largest[0])
        if present:
            store_portion(
                destination,
                index,
                T.address_of(sums[0]),
                T.address_of(values[begin]),
                T.Select(largest[0] > T.float32(0), T.float32(LARGEST) / largest[0], T.float32(0)),
            )
        for i in T.unroll(2):
            sums[i] = lane_sum(per_vector, dtype="int32")(sums[i])
        if tirx.all(present, index == 0):
            # With the code that stands for 0.
            for i in T.unroll(2):
                keep(i, T.float32(INTEGERS) + T.Cast("float32", layout.quantization.largest * sums[i]))
            keep(2, largest[0] * T.float32(1 / LARGEST))

    return compute


def round_vectors(rounded: RoundedRow, count: int, threads: int):  # type: ignore[no-untyped-def]
    """An inline (values, begin, first, present, packed, row, tx): up to `count` vectors, of which so many are `present`,
    from shared memory from `begin` on into a row of `packed` from its vector `first` on. All threads of a block take
    part."""
    per_vector = 4 // portion(rounded.layout).words
    size = rounded.codes // per_vector
    round_one = round_portion(rounded.layout)

    @T.inline
    def compute(values, begin, first, present, packed, row, tx):
        held = T.alloc_buffer((size,), scope="local")
        for n in T.unroll(divide(count * per_vector, threads)):
            place: T.let = n * threads + tx
            vector: T.let = first + place // per_vector
            for i in T.unroll(size):
                held[i] = T.float32(0)
            if place < present * per_vector:
                for p in T.unroll(size // 4):
                    for v in T.vectorized(4):
                        held[p * 4 + v] = values[begin + place * size + p * 4 + v]

            @T.inline
            def keep(kind, value):
                packed[row, rounded.floats(kind) + vector] = T.reinterpret("uint32", value)

            round_one(
                held,
                0,
                T.address_of(packed[row, rounded.vector_word(vector)]),
                place % per_vector,
                place < present * per_vector,
                keep,
            )

    return compute
