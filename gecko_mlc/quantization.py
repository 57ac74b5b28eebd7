"""Quantization schemes, with MLC's names."""

from __future__ import annotations

from typing import NamedTuple


class Quantization(NamedTuple):
    """`matrix_dtype` of weight matrices and `cache_dtype` of the window's keys and values.

    Everything else, and all arithmetic, is fp32.
    """

    name: str
    matrix_dtype: str
    cache_dtype: str


QUANTIZATIONS = {
    scheme.name: scheme
    for scheme in (
        Quantization("q0f32", "float32", "float32"),
        Quantization("q0f16", "float16", "float16"),
        Quantization("q0bf16", "bfloat16", "bfloat16"),
    )
}


def quantization(name: str) -> Quantization:
    """The scheme called `name`; `ValueError` lists the known ones."""
    if name not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {name!r}; expected one of {', '.join(QUANTIZATIONS)}")
    return QUANTIZATIONS[name]
