"""The two ways rows of a batch belong to slots."""

from __future__ import annotations

import enum

from gecko_mlc.tir_kernels.expressions import Expr


class Phase(enum.Enum):
    """`PREFILL`: n tokens of one slot, in order. `DECODE`: one token for each of n slots."""

    PREFILL = "prefill"
    DECODE = "decode"

    def sequences(self, n: Expr) -> Expr:
        """How many slots take part; the length of the `slots` argument."""
        return 1 if self is Phase.PREFILL else n

    def length(self, n: Expr) -> Expr:
        """Tokens of each slot."""
        return n if self is Phase.PREFILL else 1

    def row(self, sequence: Expr, token: Expr) -> Expr:
        """The row of a sequence's token."""
        return token if self is Phase.PREFILL else sequence

    def sequence(self, row: Expr) -> Expr:
        """The sequence a row belongs to."""
        return 0 if self is Phase.PREFILL else row

    def token(self, row: Expr) -> Expr:
        """The index of a row's token within its sequence."""
        return row if self is Phase.PREFILL else 0
