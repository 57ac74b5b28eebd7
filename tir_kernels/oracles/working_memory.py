"""Adaptive working memory (specification 2.7)."""

from __future__ import annotations

import numpy as np


def read_oracle(weights: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Read weights [n, Z] (softmax per head), memory [H, dz, dv] → [n, E]."""
    per_head = weights.reshape(len(weights), *memory.shape[:2])
    return np.einsum("nha,had->nhd", per_head, memory).reshape(len(weights), -1)


def write_oracle(
    keys: np.ndarray, values: np.ndarray, memory: np.ndarray, log_norm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Absorb keys [C, Z] and values [C, E] into memory [H, dz, dv], log_norm [H, dz]."""
    heads, size, _ = memory.shape
    ak, v = keys.reshape(-1, heads, size), values.reshape(len(values), heads, -1)
    kappa = np.exp(ak - ak.max(-1, keepdims=True))
    kappa /= kappa.sum(-1, keepdims=True)
    error = v - np.einsum("jha,had->jhd", kappa, memory)
    mass = np.exp(ak).sum(0)
    update = np.einsum("jha,jhd->had", np.exp(ak) / mass, error)
    total = np.logaddexp(log_norm, np.log(mass))
    rho = np.exp(np.log(mass) - total)[..., None]
    return (1 - rho) * memory + rho * update, total
