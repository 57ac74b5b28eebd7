"""Matrix products y = epilogue(x Wᵀ)."""

from __future__ import annotations

import numpy as np

# Smaller numbers count as zeros: the inverse of their scale would overflow.
SMALLEST = 1e-30


def oracle(
    x: np.ndarray,
    weight: np.ndarray,
    *operands: np.ndarray,
    epilogue: str = "plain",
    activation: str | None = None,
) -> np.ndarray:
    """x [n, K], weight [N, K] → y [n, N], with the epilogues of `linear`."""
    y = x @ weight.astype(x.dtype).T
    if epilogue == "bias":
        y = y + operands[0]
    if activation == "silu":
        y = y / (1 + np.exp(-y))
    if epilogue == "gate":
        y = y * operands[0]
    if epilogue == "scale_residual":
        y = y * operands[0]
    if epilogue in ("residual", "scale_residual"):
        y = y + operands[-1]
    if epilogue == "residual2":
        y = y + operands[0] + operands[1]
    return y


def rounded(x: np.ndarray, group_size: int) -> np.ndarray:
    """x [n, K] fp32 as products see it: multiples of max|x| / 127 of each group."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % group_size))).reshape(len(x), -1, group_size)
    peak = np.maximum(np.abs(groups).max(-1, keepdims=True), np.float32(SMALLEST))
    codes = np.rint(groups * (np.float32(127) / peak))
    return (codes * (peak * np.float32(1 / 127))).reshape(len(x), -1)[:, : x.shape[1]]
