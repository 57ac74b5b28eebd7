"""The generator's words, in the oracle and in a kernel."""

import functools
from typing import Any

import numpy as np
import pytest
from support.launch import launch
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.oracles.sampling import threefry
from gecko_mlc.tir_kernels.threefry import random_word

WORD = 2**32 - 1


def test_the_oracle_gives_the_published_word() -> None:
    assert threefry((0, 0), 0) == 0x6B200159


@functools.cache
def word() -> Any:
    """Kernel (random [1, 3]: seed, counter) → word [1]."""

    @kernel
    def compute(random: T.Buffer((1, 3), "int32"), word: T.Buffer((1,), "uint32")):
        for _ in T.serial(1):
            x = T.alloc_buffer((2,), "uint32")
            keys = T.alloc_buffer((3,), "uint32")
            random_word(x, keys, random, 0)
            word[0] = x[0]

    return compute


@pytest.mark.parametrize(("seed", "counter"), [((0, 0), 0), ((WORD, WORD), WORD), ((0x13198A2E, 0x03707344), 77)])
def test_kernels_count_as_the_oracle(seed: tuple[int, int], counter: int) -> None:
    random = np.array([[*seed, counter]], np.uint32).view(np.int32)
    assert launch(word(), random, np.zeros(1, np.uint32))[1][0] == threefry(seed, counter)
