"""Group quantization: bit for bit the recipe, for weights of any kind."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gecko_mlc.formats.group_quantization import GroupQuantization
from gecko_mlc.formats.quantization import QUANTIZATIONS, quantization

SCHEMES = [name for name, scheme in QUANTIZATIONS.items() if scheme.group is not None]
SOURCES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def group(name: str) -> GroupQuantization:
    found = quantization(name).group
    assert found is not None
    return found


def recipe(scheme: GroupQuantization, weight: np.ndarray) -> tuple[list[list[int]], list[list[Any]]]:
    """Words and scales as the recipe says, a number at a time; scalars round to their type after every operation."""
    stored = np.float16 if scheme.scale_dtype == "float16" else np.float32
    number = np.float32 if weight.dtype == ml_dtypes.bfloat16 else stored
    largest = 2 ** (scheme.bits - 1) - 1
    in_word = 32 // scheme.bits
    words, scales = [], []
    for row in weight:
        row_words, row_scales = [], []
        for begin in range(0, len(row), scheme.group_size):
            members = [number(value) for value in row[begin : begin + scheme.group_size]]
            scale = stored(max(abs(member) for member in members) / number(largest))
            codes = [0] * scheme.group_size
            for i, member in enumerate(members):
                shifted = (member / number(scale) if scale else number(0)) + number(largest)
                codes[i] = min(max(round(float(shifted)), 0), 2 * largest)
            row_scales.append(scale)
            row_words += [
                sum(code << scheme.bits * i for i, code in enumerate(codes[j : j + in_word]))
                for j in range(0, scheme.group_size, in_word)
            ]
        words.append(row_words)
        scales.append(row_scales)
    return words, scales


def matrices() -> dict[str, np.ndarray]:
    """fp32 matrices, ragged and extreme ones among them; the largest numbers fit into fp16."""
    rng = np.random.default_rng(0)

    def normal(outputs: int, inputs: int, deviation: float = 1.0) -> np.ndarray:
        return np.asarray(rng.normal(0, deviation, (outputs, inputs)), np.float32)

    holes = normal(4, 120)
    holes[1] = 0
    holes[2, 32:80] = 0
    spread = normal(4, 96) * 2.0 ** rng.integers(-24, 15, (4, 96))
    outlier = normal(3, 64, 1e-3)
    outlier[:, 5] = 60000
    return {
        "whole groups": normal(6, 160),
        "whole groups, small": normal(6, 160, 0.02),
        "one number": normal(1, 1),
        "a column": normal(9, 1),
        "shorter than a group": normal(4, 7),
        "a group but one": normal(3, 31),
        "a group of 32 and one": normal(3, 33),
        "a group of 40 and one": normal(3, 41),
        "ragged": normal(5, 75),
        "odd": normal(3, 127),
        "zero": np.zeros((3, 70), np.float32),
        "groups of zeros": holes,
        "constant": np.full((2, 50), 0.37, np.float32),
        "negative constant": np.full((2, 50), -3.0, np.float32),
        "huge": np.clip(normal(4, 80, 30000), -65280, 65280),
        "the largest": rng.choice(np.float32([65280, -65280, 0]), (4, 45)),
        "subnormal": normal(4, 80, 1e-6),
        "scales that underflow": normal(4, 80, 1e-7),
        "of all magnitudes": np.clip(spread, -60000, 60000).astype(np.float32),
        "an outlier": outlier,
    }


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", SCHEMES)
def test_twenty_matrices_are_bit_identical_to_the_recipe(name: str, source: str) -> None:
    scheme = group(name)
    assert len(matrices()) == 20
    for kind, values in matrices().items():
        weight = values.astype(SOURCES[source])
        q_weight, q_scale = scheme.quantize(weight)
        words, scales = recipe(scheme, weight)
        assert q_weight.tobytes() == np.array(words, np.uint32).tobytes(), kind
        assert q_scale.tobytes() == np.array(scales, scheme.scale_dtype).tobytes(), kind
        assert np.isfinite(scheme.dequantize(q_weight, q_scale, weight.shape[1])).all(), kind


@pytest.mark.parametrize("name", ["q3f16_1", "q4f16_1", "q8f16_1"])
def test_every_quotient_that_fp16_has(name: str) -> None:
    """Groups whose scale is 1: their numbers are the quotients."""
    scheme = group(name)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    quotients = every[np.abs(every) <= scheme.largest]
    weight = np.full((len(quotients), 2), scheme.largest, np.float16)
    weight[:, 1] = quotients
    q_weight, q_scale = scheme.quantize(weight)
    assert (q_scale == 1).all()
    expected = np.rint(quotients + np.float16(scheme.largest)).astype(np.uint8)
    np.testing.assert_array_equal(scheme.codes(q_weight)[:, 1], expected)


@pytest.mark.parametrize("name", ["q3f16_1", "q4f16_1", "q8f16_1"])
def test_quotients_round_as_fp16_arithmetic_does(name: str) -> None:
    scheme = group(name)
    numbers = np.random.default_rng(1).normal(0, 1, (700, 12 * scheme.group_size)).astype(np.float16)
    q_weight, q_scale = scheme.quantize(numbers)
    quotients = numbers.reshape(700, 12, -1) / q_scale[..., None]
    expected = np.clip(np.rint(quotients + np.float16(scheme.largest)), 0, 2 * scheme.largest).astype(np.uint8)
    np.testing.assert_array_equal(scheme.codes(q_weight).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay_zeros(name: str) -> None:
    scheme = group(name)
    for values in (np.zeros((2, 50)), np.full((2, 50), 1e-45)):
        weight = values.astype(np.float32)
        assert not scheme.dequantize(*scheme.quantize(weight), 50).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight = np.ones((3, 40), np.float32)
    weight[2, 39] = value
    with pytest.raises(ValueError, match="not all values are finite in float16"):
        group("q4f16_1").quantize(weight)
