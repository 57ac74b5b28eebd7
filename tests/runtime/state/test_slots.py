"""Slots have owners: streams that share an engine do not see each other, however few slots there are."""

from __future__ import annotations

import gc
import threading

import pytest
from support.fake_engine import FakeEngine

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.state.slots import entered, slots_of


@pytest.mark.parametrize("count", [1, 2, 3])
def test_more_streams_than_slots(count: int) -> None:
    """The one that was not used for the longest time is set aside."""
    engine = FakeEngine(slots=count)
    leases = [slots_of(engine).lease() for _ in range(3)]
    for token in range(6):
        for i, lease in enumerate(leases):
            with lease as slot:
                engine.extend(slot, [10 * i + token])
                assert engine.states[slot].seen == tuple(10 * i + t for t in range(token + 1))
                assert lease.position == token + 1


def test_one_slot_has_one_owner() -> None:
    engine = FakeEngine(slots=2)
    first, second = (slots_of(engine).lease(slot=1) for _ in range(2))
    with first as slot:
        assert slot == 1
        engine.extend(slot, [7])
        with pytest.raises(GeckoError, match="all 1 slots are in use at once"), second:
            pass
    with second as slot:
        assert (slot, engine.states[1].seen, first.position) == (1, (), 1)


def test_streams_of_a_batch_have_slots_of_their_own() -> None:
    engine = FakeEngine(slots=2)
    leases = [slots_of(engine).lease() for _ in range(3)]
    with entered(leases[:2]) as slots:
        assert sorted(slots) == [0, 1]
    with pytest.raises(GeckoError, match="all 2 slots are in use at once; load the model with more"), entered(leases):
        pass


def test_a_forgotten_stream_leaves_its_slot() -> None:
    engine = FakeEngine()
    lease = slots_of(engine).lease()
    with lease as slot:
        engine.extend(slot, [1])
    saved = []
    engine.save = saved.append  # type: ignore[method-assign, assignment]
    del lease
    gc.collect()
    with slots_of(engine).lease() as slot:
        assert engine.states[slot].seen == ()
    assert not saved


def test_threads_take_turns() -> None:
    engine, order = FakeEngine(slots=2), []

    def work(lease, name: str) -> None:  # type: ignore[no-untyped-def]
        for _ in range(50):
            with lease:
                order.extend([name, name])

    threads = [threading.Thread(target=work, args=(slots_of(engine).lease(), name)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(first == second for first, second in zip(order[::2], order[1::2], strict=True))


@pytest.mark.parametrize("slot", [-1, 2])
def test_slots_that_are_not_there(slot: int) -> None:
    with pytest.raises(GeckoError, match=f"slot {slot}: expected one of 0 to 1"):
        slots_of(FakeEngine(slots=2)).lease(slot)
