"""The cache of values as 8-bit codes with a scale for each token and head."""

from __future__ import annotations

import numpy as np

LARGEST_CODE = 127
# Heads with nothing above this are zero; its inverse is finite.
TINY = 1e-30


def oracle(v: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """v [..., E] fp32 → codes [..., E] int8, scales [..., H] fp32; in fp32 as the kernels, to the bit."""
    per_head = v.reshape(*v.shape[:-1], heads, -1)
    largest = np.abs(per_head).max(-1, keepdims=True)
    inverse = np.float32(LARGEST_CODE) / np.maximum(largest, np.float32(TINY))
    codes = np.rint(per_head * inverse).astype(np.int8)
    return codes.reshape(v.shape), largest[..., 0] / np.float32(LARGEST_CODE)


def values_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values [..., E] fp32 that codes [..., E] with scales [..., H] stand for."""
    per_head = codes.reshape(*scales.shape, -1).astype(np.float32)
    return (per_head * scales[..., None]).reshape(codes.shape)
