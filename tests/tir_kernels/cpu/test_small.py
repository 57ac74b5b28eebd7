"""Elementary functions, embedding rows, and the life of slots."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.launch import floats, ints, launch
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import Dense
from gecko_mlc.tir_kernels import expressions as tir_math
from gecko_mlc.tir_kernels.cpu import embedding, slots
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.oracles import embedding as embedding_oracle
from gecko_mlc.tir_kernels.phase import Phase


def apply(function, x: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    count = len(x)

    @T.prim_func(s_tir=True, private=True)
    def kernel(x: T.Buffer((count,), "float32"), y: T.Buffer((count,), "float32")):
        for i in T.serial(count // 16):
            for lane in T.vectorized(16):
                y[i * 16 + lane] = function(x[i * 16 + lane])

    return launch(kernel, x, np.zeros_like(x))[1]


def test_exp() -> None:
    x = np.linspace(-87, 88.6, 4096).astype(np.float32)
    np.testing.assert_allclose(apply(tir_math.exp, x), np.exp(x.astype(float)), rtol=3e-7)
    far = np.array([-np.inf, -1e30, -200, 0, 88.7, 200, 1e30, np.inf] * 2, np.float32)
    y = apply(tir_math.exp, far)
    assert (y[:3] == 0).all()
    assert y[3] == 1
    assert np.isfinite(y).all()


def test_silu() -> None:
    x = np.linspace(-100, 100, 4096).astype(np.float32)
    np.testing.assert_allclose(apply(tir_math.silu, x), x / (1 + np.exp(-x.astype(float))), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_average_weight(beta: float) -> None:
    """The bias correction to fp32's precision, where a power would lose four digits."""
    counts = np.concatenate([np.arange(1, 4081), 2.0 ** np.arange(12, 28)]).astype(np.float32)
    expected = (1 - beta) / -np.expm1(counts.astype(float) * math.log(beta))
    np.testing.assert_allclose(apply(lambda n: tir_math.average_weight(n, beta), counts), expected, rtol=4e-7)


def test_embedding() -> None:
    rng = np.random.default_rng(0)
    weight, tokens = floats(rng, 11, 6).astype(np.float16), ints(3, 10, 0)
    out = launch(embedding.take(11, 6, 2.5, Dense("float16")), tokens, weight, np.zeros((3, 6), np.float32))[2]
    np.testing.assert_allclose(out, embedding_oracle.oracle(tokens, weight, 2.5))
    assert launch(embedding.current_tokens(3), ints(7, 8, 9), ints(2, 0), ints(0, 0))[2].tolist() == [9, 7]
    x = floats(rng, 5, 6)
    np.testing.assert_array_equal(launch(embedding.last_row(6), x, np.zeros((1, 6), np.float32))[1], x[4:])


def test_logits_go_to_their_slots() -> None:
    rng = np.random.default_rng(0)
    rows, logits = floats(rng, 2, 9), np.zeros((3, 9), np.float32)
    out = launch(embedding.store_logits(9, 3, CPU()), rows, ints(2, 0), logits)[2]
    np.testing.assert_array_equal(out, [rows[1], np.zeros(9), rows[0]])


def test_positions() -> None:
    position = ints(1, 2, 3, 4, 5, 6).reshape(3, 2)
    tokens = ints(0, 0, 0)
    after = launch(slots.advance(Phase.PREFILL, 3), tokens, ints(1), position)[2]
    assert after.tolist() == [[1, 2], [3, 7], [5, 6]]
    after = launch(slots.advance(Phase.DECODE, 3), tokens[:2], ints(2, 0), position)[2]
    assert after.tolist() == [[1, 3], [3, 4], [5, 7]]
    assert launch(slots.next_chunk(3), ints(1), position)[1].tolist() == [[1, 2], [4, 0], [5, 6]]


def test_copy_and_fill() -> None:
    tensor = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    copied = launch(slots.copy(3, (2, 3), "float32"), ints(1, 0), tensor)[1]
    np.testing.assert_array_equal(copied, tensor[[1, 1, 2]])
    filled = launch(slots.fill(3, (2, 3), "float32", -math.inf), ints(1, 0), tensor)[1]
    assert np.isneginf(filled[:2]).all()
    np.testing.assert_array_equal(filled[2], tensor[2])
