"""Rows, sequences and tokens of both phases."""

from __future__ import annotations

import pytest

from gecko_mlc.tir_kernels.phase import Phase


@pytest.mark.parametrize(("phase", "sequences", "length"), [(Phase.PREFILL, 1, 5), (Phase.DECODE, 5, 1)])
def test_every_row_is_a_token_of_a_sequence(phase: Phase, sequences: int, length: int) -> None:
    assert (phase.sequences(5), phase.length(5)) == (sequences, length)
    for row in range(5):
        assert phase.row(phase.sequence(row), phase.token(row)) == row
        assert (phase.sequence(row) < sequences, phase.token(row) < length) == (True, True)
