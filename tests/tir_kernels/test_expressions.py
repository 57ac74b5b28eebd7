"""Elementary functions to the precision that they promise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from support.launch import launch
from tvm.script import tirx as T

from gecko_mlc.tir_kernels import expressions
from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.kernel import kernel


def apply(function: Callable[[Expr], Expr], x: np.ndarray) -> np.ndarray:
    """The function of x [16 k], in vectors of 16."""
    count = len(x)

    @kernel
    def compute(x: T.Buffer((count,), "float32"), y: T.Buffer((count,), "float32")):
        for i in T.serial(count // 16):
            for lane in T.vectorized(16):
                y[i * 16 + lane] = function(x[i * 16 + lane])

    return launch(compute, x, np.zeros_like(x))[1]


def test_exp() -> None:
    x = np.linspace(-87, 88.6, 4096).astype(np.float32)
    np.testing.assert_allclose(apply(expressions.exp, x), np.exp(x.astype(float)), rtol=3e-7)
    far = np.array([-np.inf, -1e30, -200, 0, 88.7, 200, 1e30, np.inf] * 2, np.float32)
    y = apply(expressions.exp, far)
    assert (y[:3] == 0).all()
    assert y[3] == 1
    assert np.isfinite(y).all()


def test_silu() -> None:
    x = np.linspace(-100, 100, 4096).astype(np.float32)
    np.testing.assert_allclose(apply(expressions.silu, x), x / (1 + np.exp(-x.astype(float))), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_average_weight(beta: float) -> None:
    """The bias correction to fp32's precision, where a power would lose four digits."""
    counts = np.concatenate([np.arange(1, 4081), 2.0 ** np.arange(12, 28)]).astype(np.float32)
    expected = (1 - beta) / -np.expm1(counts.astype(float) * math.log(beta))
    np.testing.assert_allclose(apply(lambda n: expressions.average_weight(n, beta), counts), expected, rtol=4e-7)
