"""What the engine calls, and when, of a library that only writes its calls down."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tvm

from gecko_mlc.formats.library import ABI_VERSION, FUNCTIONS, Metadata, StateTensor, TargetSpec
from gecko_mlc.runtime.engine import Engine

CHUNK, TILE = 20, 8


class Library:
    """What `Engine` needs of one."""

    def __init__(self, absorb_tile: int | None) -> None:
        self.device, self.stream, self.calls = tvm.cpu(), None, []
        self.functions = {name: functools.partial(self._call, name) for name in FUNCTIONS}
        self.metadata = Metadata(
            abi_version=ABI_VERSION,
            model_type="gecko",
            model_config={"chunk_size": CHUNK, "vocab_size": 5},
            quantization="q0f32",
            state_dtype="float32",
            target=TargetSpec(kind="cpu", triple="x86_64-linux-gnu", mcpu="x86-64-v3", features=()),
            max_batch_size=2,
            prefill_chunk_size=CHUNK,
            absorb_tile=absorb_tile,
            parameters=(),
            state=(StateTensor(name="logits", shape=(5,), dtype="float32"),),
            workspace_bytes={},
            tvm_version="",
        )

    def _call(self, name: str, *_: Any) -> None:
        self.calls.append(name)


@pytest.mark.parametrize("absorb_tile", [None, TILE])
def test_decode_absorbs_the_previous_chunk_tile_by_tile(absorb_tile: int | None) -> None:
    """Before the token that completes a tile, or the chunk; not in the first chunk, nor where `end_chunk` does it."""
    library = Library(absorb_tile)
    engine = Engine(library, [])  # type: ignore[arg-type]
    library.calls.clear()
    ends = {i for i in range(3 * CHUNK) if i % CHUNK in (TILE - 1, 2 * TILE - 1, CHUNK - 1)}
    expected = []
    for i in range(3 * CHUNK):
        engine.burst([0], 1)
        expected += ["absorb"] * (absorb_tile is not None and i >= CHUNK and i in ends)
        expected += ["decode", "sample"] + ["end_chunk"] * (i % CHUNK == CHUNK - 1)
    assert library.calls == expected


def test_decode_absorbs_for_any_of_its_slots() -> None:
    library = Library(TILE)
    engine = Engine(library, [])  # type: ignore[arg-type]
    engine.positions = [CHUNK + TILE - 1, 3]
    for slots, called in (([1], ["decode"]), ([1, 0], ["absorb", "decode"]), ([1, 0], ["decode"])):
        library.calls.clear()
        engine.decode(slots)
        assert library.calls == called
