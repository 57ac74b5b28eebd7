"""Scores of targets on a GPU against their oracle."""

from __future__ import annotations

import numpy as np
import pytest
from support.launch import floats
from support.launch_cuda import launch_cuda

from gecko_mlc.tir_kernels.cuda.state.score import score
from gecko_mlc.tir_kernels.oracles.sampling import score_oracle


@pytest.mark.parametrize(("n", "outputs"), [(5, 90), (3, 1003), (2, 33000)])
def test_score(n: int, outputs: int) -> None:
    rng = np.random.default_rng(1)
    logits, targets = 4 * floats(rng, n, outputs), rng.integers(0, outputs, n).astype(np.int32)
    log_p, entropies = np.full((2, n), np.nan, np.float32)
    launch_cuda(score(outputs), logits, targets, log_p, entropies)
    expected = score_oracle(logits.astype(float), targets)
    np.testing.assert_allclose(log_p, expected[0], atol=2e-6)
    np.testing.assert_allclose(entropies, expected[1], atol=2e-6)
