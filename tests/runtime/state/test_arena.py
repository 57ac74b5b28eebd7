"""Memory of the host."""

from __future__ import annotations

from gecko_mlc.formats.library import TensorSpec
from gecko_mlc.runtime.state.arena import ALIGNMENT, arena


def test_tensors_lie_in_one_piece_aligned_and_apart() -> None:
    shapes = {"float32": (3, 5), "bfloat16": (7,), "int8": (1,), "int32": (64,)}
    pieces = arena([TensorSpec(name=dtype, shape=shape, dtype=dtype) for dtype, shape in shapes.items()])
    assert [piece.nbytes for piece in pieces] == [60, 14, 1, 256]
    addresses = [piece.ctypes.data for piece in pieces]
    assert all(address % ALIGNMENT == 0 for address in addresses)
    assert [address - addresses[0] for address in addresses] == [0, 64, 128, 192]
    assert len({id(piece.base) for piece in pieces}) == 1
