"""Rows of the embedding, and the rows that go to the head and come from it."""

from __future__ import annotations

import numpy as np
from support.launch import floats, ints, launch

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels.cpu import embedding
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles.embedding import oracle


def test_embedding() -> None:
    rng = np.random.default_rng(0)
    weight, tokens = floats(rng, 11, 6).astype(np.float16), ints(3, 10, 0)
    out = launch(embedding.take(11, 6, 2.5, Dense("float16")), tokens, weight, np.zeros((3, 6), np.float32))[2]
    np.testing.assert_allclose(out, oracle(tokens, weight, 2.5))
    assert launch(embedding.current_tokens(3), ints(7, -1, 9), ints(2, 1), ints(0, 0))[2].tolist() == [9, 0]
    x = floats(rng, 5, 6)
    np.testing.assert_array_equal(launch(embedding.last_row(6), x, np.zeros((1, 6), np.float32))[1], x[4:])


def test_logits_go_to_their_slots() -> None:
    rng = np.random.default_rng(0)
    rows, logits = floats(rng, 2, 9), np.zeros((3, 9), np.float32)
    out = launch(embedding.store_logits(9, 3, CPU()), rows, ints(2, 0), logits)[2]
    np.testing.assert_array_equal(out, [rows[1], np.zeros(9), rows[0]])
