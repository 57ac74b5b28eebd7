"""The threads of a library: every part of a loop is run once, by fewer threads where that does not pay, and after a
fork; what they compute does not depend on how many they are."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.models import random_parameters, small_config

from gecko_mlc.api import load_model
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.players.threads import default_threads

LOOP = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


@pytest.fixture
def library(compiled: Callable[..., Path]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(small_config())))
    library.gecko_mlc_set_threads(1)
    return library


def run(library: ctypes.CDLL, part: Callable[[int], int | None] = lambda part: 0) -> list[int]:
    """The parts of one loop, in order."""
    parts: list[int] = []

    def loop(number: int, group: object, data: object) -> int:
        parts.append(number)
        return part(number) or 0

    assert library.gecko_mlc_parallel_launch(LOOP(loop), None, 0) == 0
    return sorted(parts)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_part_is_run_once(threads: int, library: ctypes.CDLL) -> None:
    library.gecko_mlc_set_threads(threads)
    for _ in range(50):
        parts = run(library)
        assert parts == list(range(len(parts)))
        assert len(parts) <= threads


def test_a_part_that_fails_is_an_error(library: ctypes.CDLL) -> None:
    library.gecko_mlc_set_threads(2)
    for failing in (0, 1):
        assert run(library) == [0, 1]
        assert library.gecko_mlc_parallel_launch(LOOP(lambda part, *_, f=failing: -(part == f)), None, 0) != 0


def test_threads_that_keep_the_others_waiting_are_left_out_and_tried_again(library: ctypes.CDLL) -> None:
    library.gecko_mlc_set_threads(2)
    assert run(library) == [0, 1]
    here = threading.get_ident()

    def slow_elsewhere(part: int) -> None:
        time.sleep(0 if threading.get_ident() == here else 0.01)

    assert [0] in [run(library, slow_elsewhere) for _ in range(8)]
    assert any(run(library) == [0, 1] or time.sleep(0.01) for _ in range(1000))


def test_a_loop_beside_another_one_has_one_thread(library: ctypes.CDLL) -> None:
    library.gecko_mlc_set_threads(2)
    inner: list[list[int]] = []
    assert run(library, lambda part: inner.append(run(library)) if part == 0 else None) == [0, 1]
    assert inner == [[0]]


def test_a_child_process_has_threads_of_its_own(library: ctypes.CDLL) -> None:
    library.gecko_mlc_set_threads(2)
    assert run(library) == [0, 1]
    child = os.fork()
    if child == 0:
        here = {threading.get_native_id()}

        def note(part: int) -> None:
            here.add(threading.get_native_id())
            time.sleep(0.02)

        os._exit(0 if run(library, note) == [0, 1] and len(here) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_numbers_do_not_depend_on_the_threads(engine: Callable[..., Engine]) -> None:
    config = small_config()
    one = engine(config, random_parameters(config))
    logits = []
    for threads in (1, 2, 5):
        one.player.threads = threads
        one.reset(0)
        whole = one.extend_logits(0, [i % config.vocab_size for i in range(2 * config.chunk_size + 3)])
        one.set_token(0, 1)
        one.decode([0])
        logits.append(np.concatenate([whole, one.logits(0)[None]]))
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


@pytest.mark.parametrize(("text", "expected"), [("1", 1), (" 1 ", 1), ("100000", host.processors()), ("", None)])
def test_the_environment_says_how_many(text: str, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    assert default_threads() == (expected or host.usable_cores())


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_what_is_no_number_of_threads_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    with pytest.raises(GeckoError, match=f"TVM_NUM_THREADS={text}: expected a number of threads"):
        default_threads()


@pytest.mark.parametrize("threads", [0, -1, host.processors() + 1, 1.5, "2"])
def test_a_model_with_a_number_of_threads_that_cannot_be_is_refused_first(threads: object) -> None:
    with pytest.raises(GeckoError, match="threads: should be"):
        load_model("no such model", threads=threads)  # type: ignore[arg-type]
