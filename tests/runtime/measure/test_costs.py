"""Bytes and operations of the 7B, counted, against the numbers of specification 6."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.metadata import CHUNK, metadata

from gecko_mlc.formats.quantization import quantization
from gecko_mlc.runtime.measure.costs import decode_bytes, prefill_flop


def test_decode_bytes() -> None:
    """15.9 to 17.1 GB: the specification counts vectors in 16 bits, here they are fp32 (and the EMA has 5 for 4)."""
    m = metadata()
    first, last = decode_bytes(m, 4 * CHUNK), decode_bytes(m, 5 * CHUNK - 1)
    assert [first / 1e9, last / 1e9] == pytest.approx([15.9, 17.1], abs=0.05)
    window, memory, ema = 2 * (1024 + 8192) * 32, 2 * 1024 * 2048 * 32, 2 * 8 * 4096 * 16 * 32
    assert last - first == (CHUNK - 1) * window
    weights = first - (CHUNK + 1) * window - memory - ema
    matrices, head = 32 * 222_298_112, 32_000 * 4096
    assert weights == pytest.approx(14.51e9, rel=2e-3)
    assert weights - 2 * (matrices + head) == 4 * (32 * (222_614_528 - 222_298_112 + (5 * 16 - 65) * 4096) + 2 * 4096)
    # The memory is empty in the first two chunks, the first token sees itself alone.
    assert decode_bytes(m, CHUNK) == first - memory
    assert decode_bytes(m, 0) == weights + ema + window
    assert decode_bytes(metadata(kind="cpu"), 4 * CHUNK) == first + memory


def test_decode_bytes_of_codes() -> None:
    """4 bits and a scale of 16 for 32 weights; a byte for a value, and a scale of 4 for a token and head."""
    m = metadata(scheme=quantization("q4f16_1", "int8"))
    first, last = decode_bytes(m, 4 * CHUNK), decode_bytes(m, 5 * CHUNK - 1)
    assert last - first == (CHUNK - 1) * 32 * (2 * 1024 + 8192 + 4 * 4)
    full = metadata()
    matrices = 32 * 222_298_112 + 32_000 * 4096
    window = (CHUNK + 1) * 32 * (8192 - 4 * 4)
    assert decode_bytes(full, 4 * CHUNK) - first == matrices * (16 - 4.5) / 8 + window


def test_prefill_operations() -> None:
    m = metadata()
    # One token, with the head: the memory's share of the chunk before is spread over the tokens.
    counts = [prefill_flop(m, 4 * CHUNK + offset, 1) / 1e9 for offset in (0, CHUNK // 2, CHUNK - 1)]
    assert counts == pytest.approx([16.1, 16.7, 17.3], abs=0.05)
    head = 2 * 32_000 * 4096
    per_token = [(prefill_flop(m, chunk * CHUNK, CHUNK) - head) / CHUNK / 1e9 for chunk in (0, 4)]
    assert per_token == pytest.approx([14.83, 16.44], abs=0.01)
    # A CPU takes the whole chunk in at the end of the next one.
    cpu = metadata(kind="cpu")
    assert prefill_flop(cpu, 3 * CHUNK, CHUNK) == prefill_flop(m, 3 * CHUNK, CHUNK)
    assert prefill_flop(cpu, 4 * CHUNK, 1) < prefill_flop(m, 4 * CHUNK, 1)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("start", [0, CHUNK - 1, CHUNK, 2 * CHUNK - 3, 5 * CHUNK + 7])
def test_costs_of_many_tokens_are_those_of_each(kind: str, start: int) -> None:
    m, ends = metadata(kind=kind), [start + n for n in (0, 1, 2, 3, 4, CHUNK, CHUNK + 9)]
    parts = list(pairwise(ends))
    count, head = ends[-1] - start, 2 * 32_000 * 4096
    assert decode_bytes(m, start, tokens=count) == sum(decode_bytes(m, a, tokens=b - a) for a, b in parts)
    assert prefill_flop(m, start, count) - head == sum(prefill_flop(m, a, b - a) - head for a, b in parts)
