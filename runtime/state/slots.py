"""Slots and their owners: streams that share an engine, each with a state that nobody else's call can touch."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.state.bare_engine import BareEngine


class Slots:
    """The slots of one engine. There may be more streams than slots: the one that was not used for the longest time is
    set aside in the host's memory while another one needs its slot."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine if hasattr(engine, "checkpoint") else BareEngine(engine)
        # By slot, the least recently used first; an owner that was forgotten leaves an empty place.
        self._owners: dict[int, weakref.ref[Lease]] = {}

    def lease(self, slot: int | None = None) -> Lease:
        """A stream of its own: in whatever slot is free when it is used, or always in `slot`."""
        count = getattr(self.engine, "slots", 1)
        if slot is not None and not (isinstance(slot, int) and 0 <= slot < count):
            raise GeckoError(f"slot {slot!r}: expected one of 0 to {count - 1}")
        return Lease(self, slot)

    def seat(self, lease: Lease) -> int:
        """The slot that `lease` is in, brought there if it was set aside. Raises `GeckoError` where all are in use."""
        if lease.slot is None:
            lease.slot = self._free(lease.pinned)
            if lease.saved is None:
                self.engine.reset(lease.slot)
            else:
                self.engine.load(lease.slot, lease.saved)
                lease.saved = None
        self._owners.pop(lease.slot, None)
        self._owners[lease.slot] = weakref.ref(lease)
        return lease.slot

    def _free(self, pinned: int | None) -> int:
        """A slot that nobody is in, if need be after its owner was set aside."""
        slots = range(getattr(self.engine, "slots", 1)) if pinned is None else [pinned]
        for slot in slots:
            if slot not in self._owners or self._owners[slot]() is None:
                return slot
        for slot, reference in self._owners.items():
            owner = reference()
            if slot in slots and owner is not None and not owner.entered:
                owner.saved, owner.slot = self.engine.save(slot), None
                return slot
        raise GeckoError(f"all {len(slots)} slots are in use at once; load the model with more, like slots=2")


class Lease:
    """One stream: a state, which is in a slot while the lease is entered.

    Entering it takes the engine's lock: calls from several threads come one after the other.
    """

    def __init__(self, slots: Slots, pinned: int | None) -> None:
        self._slots, self.pinned = slots, pinned
        self.slot: int | None = None
        self.saved: Any = None
        self.entered = 0

    @property
    def engine(self) -> Any:
        """What runs the stream's tokens."""
        return self._slots.engine

    @property
    def position(self) -> int:
        """Tokens that the state has seen."""
        if self.slot is not None:
            return int(self.engine.positions[self.slot])
        return 0 if self.saved is None else int(self.saved.position)

    def __enter__(self) -> int:
        self.engine.lock.acquire()
        try:
            slot = self._slots.seat(self)
        except BaseException:
            self.engine.lock.release()
            raise
        self.entered += 1
        return slot

    def __exit__(self, *_: object) -> None:
        self.entered -= 1
        self.engine.lock.release()

    def reset(self) -> None:
        """Back to before the first token."""
        self.saved = None
        with self as slot:
            self.engine.reset(slot)


@contextmanager
def entered(leases: Iterable[Lease]) -> Iterator[list[int]]:
    """The slots of several streams of one engine, at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(lease) for lease in leases]


def slots_of(engine: Any) -> Slots:
    """The slots of an engine: each has one owner, whoever asks."""
    if not hasattr(engine, "owners"):
        engine.owners = Slots(engine)
    owners: Slots = engine.owners
    return owners
