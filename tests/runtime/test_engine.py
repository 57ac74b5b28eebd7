"""What the engine calls, and when, of a library that only writes its calls down; and two threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.models import random_parameters, small_config
from support.player import NumPyPlayer

from gecko_mlc.formats.library import FUNCTIONS, Metadata, StateTensor, TargetSpec
from gecko_mlc.formats.sampling import Sampling
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.runtime.engine import Engine

CHUNK, TILE = 20, 8


class Library:
    """What `Engine` needs of one. `sample` draws 1, 2, 3, … in every slot it is given."""

    def __init__(self, absorb_tile: int | None) -> None:
        self.calls: list[str] = []
        self.drawn = 0
        self.player = NumPyPlayer({name: self._function(name) for name in FUNCTIONS})
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
            state=(
                StateTensor(name="logits", shape=(5,), dtype="float32"),
                StateTensor(name="token", shape=(), dtype="int32"),
            ),
            workspace_bytes={},
            tvm_version="",
        )

    def _function(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.calls.append(name)
            if name == "sample":
                self.drawn += 1
                slots, _, token = arguments
                token[slots] = self.drawn

        return call


def make_engine(absorb_tile: int | None) -> tuple[Library, Engine]:
    library = Library(absorb_tile)
    engine = Engine(library, [])  # type: ignore[arg-type]
    library.calls.clear()
    return library, engine


@pytest.mark.parametrize("absorb_tile", [None, TILE])
def test_decode_absorbs_the_previous_chunk_tile_by_tile(absorb_tile: int | None) -> None:
    """Before the token that completes a tile, or the chunk; not in the first chunk, nor where `end_chunk` does it."""
    library, engine = make_engine(absorb_tile)
    ends = {i for i in range(3 * CHUNK) if i % CHUNK in (TILE - 1, 2 * TILE - 1, CHUNK - 1)}
    expected = []
    for i in range(3 * CHUNK):
        engine.decode([0])
        expected += ["absorb"] * (absorb_tile is not None and i >= CHUNK and i in ends)
        expected += ["decode"] + ["end_chunk"] * (i % CHUNK == CHUNK - 1)
    assert library.calls == expected


def test_decode_absorbs_for_any_of_its_slots() -> None:
    library, engine = make_engine(TILE)
    engine.positions = [CHUNK + TILE - 1, 3]
    for slots, called in (([1], ["decode"]), ([1, 0], ["absorb", "decode"]), ([1, 0], ["decode"])):
        library.calls.clear()
        engine.decode(slots)
        assert library.calls == called


def test_a_fetched_token_is_the_one_of_its_time() -> None:
    """Whatever is drawn before it is read."""
    _, engine = make_engine(None)
    engine.sample([0])
    engine.sample([1])
    first = engine.fetch_tokens([1, 0])
    engine.sample([0, 1])
    second = engine.fetch_tokens([0])
    assert (second(), first()) == ([3], [2, 1])
    assert engine.token(1) == 3


def test_the_engine_knows_whether_its_calls_are_done_when_they_return() -> None:
    _, engine = make_engine(None)
    assert engine.asynchronous is NumPyPlayer.asynchronous is False


def test_a_call_waits_for_those_of_another_thread() -> None:
    library, engine = make_engine(None)
    with engine.lock:
        thread = threading.Thread(target=engine.decode, args=([0],))
        thread.start()
        thread.join(0.05)
        assert library.calls == []
        engine.decode([1])
    thread.join()
    assert library.calls == ["decode", "decode"]
    assert engine.positions == [1, 1]


def test_two_threads_on_two_slots_draw_what_one_after_the_other_does(engine: Callable[..., Engine]) -> None:
    """Sampled with a seed, over chunks' ends."""
    config = small_config()
    shared = engine(config, random_parameters(config), slots=2)

    def draw(slot: int) -> list[int]:
        shared.reset(slot)
        shared.set_sampling(slot, Sampling(temperature=1.0, top_p=1.0), seed=slot)
        shared.extend(slot, [3, 1, 4, 1, 5][slot:])
        tokens = []
        for _ in range(3 * config.chunk_size):
            shared.sample([slot])
            tokens += shared.fetch_tokens([slot])()
            shared.decode([slot])
        return tokens

    alone = [draw(0), draw(1)]
    together: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda slot=slot: together.update({slot: draw(slot)})) for slot in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone
    assert alone[0] != alone[1]
