"""Quantization schemes, with MLC's names."""

from __future__ import annotations

from typing import NamedTuple

from gecko_mlc.formats.group_quantization import GroupQuantization

STATE_DTYPES = ("float32", "float16", "bfloat16", "int8")


class Quantization(NamedTuple):
    """What weight matrices and the caches of keys and values are stored as.

    Matrices are of `model_dtype`, or codes and scales of a `group` scheme that stand for numbers of that dtype.
    `state_dtype` is the caches'; int8 is of the values alone, with a scale for each token and head. Everything else
    is fp32.
    """

    name: str
    model_dtype: str
    group: GroupQuantization | None
    state_dtype: str

    @property
    def key_dtype(self) -> str:
        """The dtype of cached keys."""
        return self.state_dtype if self.state_dtype != "int8" else self.sixteen_bits

    @property
    def sixteen_bits(self) -> str:
        """The dtype of what the state holds in 16 bits."""
        return "bfloat16" if self.model_dtype == "bfloat16" else "float16"

    def with_state(self, dtype: str) -> Quantization:
        """The scheme with caches of another dtype; `ValueError` lists the known ones."""
        if dtype not in STATE_DTYPES:
            raise ValueError(f"unknown state dtype {dtype!r}; expected one of {', '.join(STATE_DTYPES)}")
        return self._replace(state_dtype=dtype)


def _plain(name: str, dtype: str) -> Quantization:
    return Quantization(name, dtype, None, dtype)


def _grouped(name: str, bits: int, group_size: int, dtype: str) -> Quantization:
    group = GroupQuantization.model_validate({"bits": bits, "group_size": group_size, "scale_dtype": dtype})
    return Quantization(name, dtype, group, dtype)


QUANTIZATIONS = {
    scheme.name: scheme
    for scheme in (
        _plain("q0f32", "float32"),
        _plain("q0f16", "float16"),
        _plain("q0bf16", "bfloat16"),
        _grouped("q3f16_1", 3, 40, "float16"),
        _grouped("q4f16_1", 4, 32, "float16"),
        _grouped("q4f32_1", 4, 32, "float32"),
        _grouped("q8f16_1", 8, 32, "float16"),
    )
}


def quantization(name: str, state_dtype: str | None = None) -> Quantization:
    """The scheme called `name`, with caches of `state_dtype` or its own; `ValueError` lists the known ones."""
    if name not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {name!r}; expected one of {', '.join(QUANTIZATIONS)}")
    scheme = QUANTIZATIONS[name]
    return scheme if state_dtype is None else scheme.with_state(state_dtype)
