"""Scores of a decoded token's attention: dot products of its query with cached keys, for CUDA."""

import math
from typing import Any, NamedTuple

from tvm import DataType
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import lane_sum
from gecko_mlc.tir_kernels.expressions import loader
from gecko_mlc.tir_kernels.shapes import Window

# Vectors of keys that a thread has on their way at a time.
LOADS = 8


class Scores(NamedTuple):
    """Inlines, and the registers that they need: queries [2, rounds, width], keys [loads, rounds, width].

    load(keys, held_keys, part, first_feature, tx, j0): a head's cached keys from the part's position j0 on.
    hold(query, held_query, tx): a lane's features of the queries for the own and for the previous chunk.
    compute(keys, held_keys, held_query, score, scores, part, first_feature, tx): scores of all cached positions, of
    which the first keys have been loaded.
    """

    loads: int
    rounds: int
    width: int
    load: Any
    hold: Any
    compute: Any


def cached_scores(window: Window, threads: int, longest: int) -> Scores:
    """How the threads of a block score up to `longest` cached keys: some lanes for each key."""
    size = window.head_dim
    width = math.gcd(size, 128 // DataType(window.key_dtype).bits)
    vectors = size // width
    lanes = min(32, 1 << (vectors - 1).bit_length())
    rounds = -(-vectors // lanes)
    # Keys at a time, and those that a thread has on their way.
    keys_at_once = threads // lanes
    loads = min(-(-longest // keys_at_once), LOADS // rounds if rounds < LOADS else 1)
    widen, sum_lanes = loader(window.key_dtype), lane_sum(lanes)

    @T.inline
    def load(keys, held_keys, part, first_feature, tx, j0):
        for i in T.unroll(loads):
            if j0 + i * keys_at_once + tx // lanes < part.cached:
                k: T.let = part.first + j0 + i * keys_at_once + tx // lanes
                for r in T.unroll(rounds):
                    if r * lanes + tx % lanes < vectors:
                        for v in T.vectorized(width):
                            held_keys[i, r, v] = keys[
                                part.slot,
                                part.buffer(k),
                                part.offset(k),
                                first_feature + (r * lanes + tx % lanes) * width + v,
                            ]

    @T.inline
    def hold(query, held_query, tx):
        for chunk in T.unroll(2):
            for r in T.unroll(rounds):
                if r * lanes + tx % lanes < vectors:
                    for v in T.unroll(width):
                        held_query[chunk, r, v] = query[chunk, (r * lanes + tx % lanes) * width + v]

    @T.inline
    def compute(keys, held_keys, held_query, score, scores, part, first_feature, tx):
        for step in T.serial((part.cached + keys_at_once * loads - 1) // (keys_at_once * loads)):
            if step > 0:
                load(keys, held_keys, part, first_feature, tx, step * keys_at_once * loads)
            for i in T.unroll(loads):
                j: T.let = (step * loads + i) * keys_at_once + tx // lanes
                score[0] = T.float32(0)
                if j < part.cached:
                    for r in T.unroll(rounds):
                        if r * lanes + tx % lanes < vectors:
                            for v in T.unroll(width):
                                score[0] = score[0] + T.Select(
                                    part.first + j < part.previous, held_query[1, r, v], held_query[0, r, v]
                                ) * widen(held_keys, i, r, v)
                score[0] = sum_lanes(score[0])
                if j < part.cached and tx % lanes == 0:
                    scores[j] = score[0]

    return Scores(loads, rounds, width, load, hold, compute)
