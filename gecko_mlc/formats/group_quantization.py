"""Group quantization: the recipe, bit for bit MLC's, and how a quantized matrix lies in files and in memory.

A group of inputs of a row shares a scale s; a code c of a few bits stands for (c − largest)·s. NumPy alone: converters
quantize with it, runtimes pack what they load, kernels follow the layout.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict

# Weights that are quantized at a time: what is made of them stays in a core's cache.
_BLOCK = 2**17


class Dense(NamedTuple):
    """A matrix [out, in] of plain numbers."""

    dtype: str

    @property
    def arithmetic(self) -> str:
        """The dtype of the numbers that stand for the weights."""
        return self.dtype

    def shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """The shape in memory."""
        return outputs, inputs


class GroupQuantization(BaseModel):
    """A scheme: codes of `bits` in uint32 words, a scale for every `group_size` inputs.

    In files a matrix [out, in] is `q_weight` [out, ⌈in/group⌉·words] and `q_scale` [out, ⌈in/group⌉].
    """

    model_config = ConfigDict(frozen=True)

    bits: Literal[3, 4, 8]
    group_size: int
    scale_dtype: Literal["float16", "float32"]

    @property
    def largest(self) -> int:
        """The largest magnitude, in scales, and the code that stands for 0."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def codes_per_word(self) -> int:
        """Codes in a word, the first in its lowest bits."""
        return 32 // self.bits

    @property
    def words_per_group(self) -> int:
        """Words of a group."""
        return self.group_size // self.codes_per_word

    def groups(self, inputs: int) -> int:
        """Groups of a row."""
        return -(-inputs // self.group_size)

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """weight [out, in] → `q_weight` uint32, `q_scale`.

        With s = max|w| / largest, c = clip(rint(w/s + largest), 0, 2·largest); a group of zeros has s = 0. Codes
        beyond `in` are 0. Arithmetic rounds to the scales' dtype after every operation; of bf16 weights, which would
        lose by it, only the scale is rounded. Raises `ValueError` when a value is not finite in the scales' dtype.
        """
        outputs, inputs = weight.shape
        groups = self.groups(inputs)
        q_weight = np.empty((outputs, groups * self.words_per_group), np.uint32)
        q_scale = np.empty((outputs, groups), self.scale_dtype)
        rows = max(1, _BLOCK // inputs)
        for start in range(0, outputs, rows):
            block = slice(start, start + rows)
            q_weight[block], q_scale[block] = self._quantize_rows(weight[block])
        return q_weight, q_scale

    def _quantize_rows(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs, inputs = weight.shape
        dtype, largest = np.dtype(self.scale_dtype), np.float32(self.largest)
        # Rounding fp32 is many times faster than NumPy's fp16 arithmetic, which does so too, a number at a time.
        rounded = dtype == np.float16 and weight.dtype != ml_dtypes.bfloat16
        padded = np.zeros((outputs, self.groups(inputs) * self.group_size), np.float32)
        with np.errstate(over="ignore"):
            padded[:, :inputs] = weight.astype(dtype) if rounded else weight
        values = padded.reshape(outputs, -1, self.group_size)
        magnitudes = np.abs(values).max(-1)
        if not magnitudes.max() <= np.finfo(dtype).max:
            raise ValueError(f"not all values are finite in {dtype}")
        scale = (magnitudes / largest).astype(dtype)
        values /= np.where(scale == 0, np.inf, scale).astype(np.float32)[..., None]
        if rounded:
            _round_to_half(values)
        values += largest
        if rounded:
            _round_to_half(values)
        np.rint(values, out=values)
        np.clip(values, 0, 2 * largest, out=values)
        codes = padded.astype(np.uint8)
        codes[:, inputs:] = 0
        return self._words(codes), scale

    def dequantize(self, q_weight: np.ndarray, q_scale: np.ndarray, inputs: int) -> np.ndarray:
        """The fp32 matrix [out, in] that the codes and scales stand for."""
        codes = self.codes(q_weight).astype(np.float32) - np.float32(self.largest)
        values = codes.reshape(*q_scale.shape, self.group_size) * q_scale.astype(np.float32)[..., None]
        return values.reshape(len(q_weight), -1)[:, :inputs]

    def codes(self, q_weight: np.ndarray) -> np.ndarray:
        """The codes [out, ⌈in/group⌉·group] uint8 of `q_weight`."""
        shifts = np.arange(self.codes_per_word, dtype=np.uint32) * np.uint32(self.bits)
        codes: np.ndarray = q_weight[..., None] >> shifts & np.uint32(2**self.bits - 1)
        return codes.astype(np.uint8).reshape(len(q_weight), -1)

    def _words(self, codes: np.ndarray) -> np.ndarray:
        codes = codes.reshape(len(codes), -1, self.codes_per_word)
        words = np.zeros(codes.shape[:2], np.uint32)
        for i in range(self.codes_per_word):
            words |= codes[..., i].astype(np.uint32) << np.uint32(i * self.bits)
        return words


def _round_to_half(values: np.ndarray) -> None:
    """Round fp32 `values` below 2^16 in place to fp16's 11 bits, by Veltkamp's splitting.

    That leaves what is subnormal in fp16 as it is, and may break a tie the other way. Here neither tells: quotients of
    fp16 numbers have no ties, and sums are rounded to integers next.
    """
    scaled = values * np.float32(2**13 + 1)
    np.subtract(scaled, values, out=values)
    np.subtract(scaled, values, out=values)


class GroupLayout(BaseModel):
    """A quantized matrix in memory, uint32 [⌈out/lanes⌉, words]: of `lanes` outputs side by side, the words of codes of
    a span of groups, the outputs' next to each other, then the span's scales, likewise, and so on.

    GPUs take single rows, 16-byte aligned, in one span; a CPU as many outputs as a vector has lanes, in spans with 64
    bytes of scales: that is one stream for it. A word holds codes of `code_bits`: the first half of them in its lower
    16 bits. For 4 and 8 bits that is the files' order. CPUs hold 3-bit codes in 4 bits, which a byte can be made of.
    """

    model_config = ConfigDict(frozen=True)

    quantization: GroupQuantization
    lanes: int
    code_bits: Literal[3, 4, 8]

    @property
    def dtype(self) -> str:
        """The dtype in memory."""
        return "uint32"

    @property
    def arithmetic(self) -> str:
        """The dtype of the numbers that stand for the weights."""
        return self.quantization.scale_dtype

    @property
    def codes_per_word(self) -> int:
        """Codes in a word of memory."""
        return 32 // self.code_bits

    @property
    def words_per_group(self) -> int:
        """Words of a group's codes of one output."""
        return self.quantization.group_size // self.codes_per_word

    def shift(self, index: int) -> int:
        """The lowest bit of a word's code `index`."""
        half = self.codes_per_word // 2
        return index // half * 16 + index % half * self.code_bits

    def span(self, inputs: int) -> int:
        """The groups whose scales are together, behind their codes."""
        return self.quantization.groups(inputs) if self.lanes == 1 else 64 // (self.lanes * self._scale_bytes)

    def scale_offset(self, inputs: int) -> int:
        """The word of a span where its scales begin."""
        return self.span(inputs) * self.words_per_group * self.lanes

    def span_words(self, inputs: int) -> int:
        """The words of a span: whole 16 bytes."""
        return self.scale_offset(inputs) + -(-self.span(inputs) * self.lanes * self._scale_bytes // 16) * 4

    def shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """The shape in memory of a matrix [out, in]."""
        spans = -(-self.quantization.groups(inputs) // self.span(inputs))
        return -(-outputs // self.lanes), spans * self.span_words(inputs)

    def gives(self, shape: tuple[int, ...], dtype: str, outputs: int, inputs: int) -> bool:
        """Whether a matrix [out, in] has this shape and dtype in memory: what a file says of itself may be nonsense."""
        sound = 1 <= self.lanes <= 16 and min(self.quantization.group_size, outputs, inputs) >= 1
        return sound and (self.dtype, self.shape(outputs, inputs)) == (dtype, shape)

    def pack(self, q_weight: np.ndarray, q_scale: np.ndarray, inputs: int) -> np.ndarray:
        """The matrix in memory of what files hold; outputs beyond the last are zeros."""
        words = q_weight if self._as_in_files else self._recode(q_weight)
        packed = np.zeros(self.shape(len(words), inputs), np.uint32)
        spans = packed.reshape(len(packed), -1, self.span_words(inputs))
        offset = self.scale_offset(inputs)
        spans[..., :offset] = self._interleave(words, self.span(inputs) * self.words_per_group)
        scales = spans[..., offset:].view(self.quantization.scale_dtype)
        scales[..., : self.span(inputs) * self.lanes] = self._interleave(q_scale, self.span(inputs))
        return packed

    @property
    def _scale_bytes(self) -> int:
        return int(np.dtype(self.quantization.scale_dtype).itemsize)

    @property
    def _as_in_files(self) -> bool:
        """Whether words hold the same codes at the same bits as in files."""
        return self.code_bits == self.quantization.bits and 16 % self.code_bits == 0

    def _interleave(self, rows: np.ndarray, size: int) -> np.ndarray:
        """rows [out, n] → [⌈out/lanes⌉, ⌈n/size⌉, size·lanes]"""
        padded = np.pad(rows, ((0, -len(rows) % self.lanes), (0, -rows.shape[1] % size)))
        parts = padded.reshape(len(padded) // self.lanes, self.lanes, -1, size).transpose(0, 2, 3, 1)
        return parts.reshape(*parts.shape[:2], -1)

    def _recode(self, q_weight: np.ndarray) -> np.ndarray:
        codes = self.quantization.codes(q_weight).reshape(len(q_weight), -1, self.codes_per_word)
        words = np.zeros(codes.shape[:2], np.uint32)
        for i in range(self.codes_per_word):
            words |= codes[..., i].astype(np.uint32) << np.uint32(self.shift(i))
        return words


WeightFormat = Dense | GroupLayout
