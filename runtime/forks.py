"""What a process that was forked finds of its parent's models: they work, or say at once that they do not."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from gecko_mlc.formats.errors import GeckoError


class Locked(Protocol):
    """What has a lock, an `RLock`, that its calls hold, and a player."""

    lock: Any
    player: Any


class LostLock:
    """A lock that nobody can take: what it is of does not work in this process."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def acquire(self) -> None:
        """Raises `GeckoError`."""
        raise GeckoError(
            f"{self._reason} this process was forked; load it in this one, or start processes by the method spawn"
        )

    def release(self) -> None:
        """For what this thread had taken before."""

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_locked: weakref.WeakSet[Any] = weakref.WeakSet()


def mind_forks(owner: Locked) -> None:
    """In a child process, make an owner's lock free, or one that says why it cannot be taken."""
    _locked.add(owner)


def _forked() -> None:
    for owner in list(_locked):
        if not owner.player.survives_fork:
            owner.lock = LostLock("the model was loaded on a GPU before")
        elif owner.lock.acquire(blocking=False):
            owner.lock.release()
        else:  # By a thread that is not here: it may have done half of a call.
            owner.lock = LostLock("another thread was using the model when")


os.register_at_fork(after_in_child=_forked)
