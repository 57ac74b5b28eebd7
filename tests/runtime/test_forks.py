"""A model of a process that is forked: the child goes on with it, or is told at once that it cannot."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from support.models import random_parameters, small_config

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.players.tvm import TVMPlayer


def in_child(work: Callable[[], Any]) -> None:
    """Run assertions in a process forked from this one."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_goes_on_as_its_parent_does(engine: Callable[..., Engine]) -> None:
    config = small_config()
    one = engine(config, random_parameters(config))
    one.player.threads = 2
    one.extend(0, [3, 1, 4, 1, 5])

    def go_on() -> list[float]:
        one.extend(0, [2, 6])
        values: list[float] = one.logits(0).tolist()
        return values

    saved = one.save(0)
    expected = go_on()
    one.load(0, saved)

    def check() -> None:
        assert go_on() == expected

    with one.lock:  # This thread's own is no hindrance.
        in_child(check)
    in_child(check)


def test_a_child_is_told_of_a_call_that_another_thread_had_begun(engine: Callable[..., Engine]) -> None:
    config = small_config()
    one = engine(config, random_parameters(config))
    begun, end = threading.Event(), threading.Event()

    def use() -> None:
        with one.lock:
            begun.set()
            end.wait()

    thread = threading.Thread(target=use)
    thread.start()
    begun.wait()

    def check() -> None:
        with pytest.raises(GeckoError, match="another thread was using the model when this process was forked"):
            one.extend(0, [1])

    try:
        in_child(check)
    finally:
        end.set()
        thread.join()
    one.extend(0, [1])


def test_a_child_is_told_of_a_model_on_a_gpu(engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    one = engine(config, random_parameters(config))
    monkeypatch.setattr(TVMPlayer, "survives_fork", False)

    def check() -> None:
        with pytest.raises(GeckoError, match=r"loaded on a GPU before this process was forked; .* the method spawn"):
            one.extend(0, [1])

    in_child(check)
    one.extend(0, [1])
