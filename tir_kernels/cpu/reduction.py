"""Sums and maxima over the lanes of vectors, inlined into kernels."""

from __future__ import annotations

from tvm.script import tirx as T


@T.inline
def clear(lanes, rows, width):
    """lanes[:, :] = 0"""
    for row in T.unroll(rows):
        for lane in T.vectorized(width):
            lanes[row, lane] = T.float32(0)


@T.inline
def fold(lanes, rows, half):
    """Add the upper half of every row's lanes to the lower."""
    for row in T.unroll(rows):
        for lane in T.vectorized(half):
            lanes[row, lane] = lanes[row, lane] + lanes[row, lane + half]


@T.inline
def sum_lanes(total, lanes, rows, width):
    """total[:] = Σ lanes[row, :], pairwise; `width` is a power of two up to 16, `lanes` is overwritten."""
    if width >= 16:
        fold(lanes, rows, 8)
    if width >= 8:
        fold(lanes, rows, 4)
    if width >= 4:
        fold(lanes, rows, 2)
    if width >= 2:
        fold(lanes, rows, 1)
    for row in T.unroll(rows):
        total[row] = lanes[row, 0]


@T.inline
def fold_max(lanes, rows, half):
    """Put the larger of the upper half of every row's lanes and of the lower into the lower."""
    for row in T.unroll(rows):
        for lane in T.vectorized(half):
            lanes[row, lane] = T.max(lanes[row, lane], lanes[row, lane + half])


@T.inline
def max_lanes(maximum, lanes, rows, width):
    """maximum[:] = max lanes[row, :]; `width` is a power of two up to 16, `lanes` is overwritten."""
    if width >= 16:
        fold_max(lanes, rows, 8)
    if width >= 8:
        fold_max(lanes, rows, 4)
    if width >= 4:
        fold_max(lanes, rows, 2)
    if width >= 2:
        fold_max(lanes, rows, 1)
    for row in T.unroll(rows):
        maximum[row] = lanes[row, 0]
