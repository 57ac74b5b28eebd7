"""What a model says of given tokens: calls of a bounded size, and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from gecko_mlc.formats.errors import LogitsError
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.text.long_text import Piece

# The most logits that are on the host at a time, of each model.
MAX_LOGITS = 2**22


class Batch(NamedTuple):
    """Tokens of one call, the tokens that follow each of them, and the bytes that those stand for."""

    tokens: list[int]
    targets: list[int]
    bytes: int


def call_size(engine: Engine, logits: bool) -> int:
    """Tokens a call: a chunk, or what part of it the workspace has room for, and the host for `logits` if it asks."""
    limit = engine.metadata.prefill_chunk_size
    if logits:
        limit = min(limit, max(MAX_LOGITS // engine.num_outputs, 1))
    # Equal parts of a chunk: none of them crosses its end.
    return -(-engine.chunk_size // -(-engine.chunk_size // limit))


def batches(pieces: Iterable[Piece], beginning: list[int], size: int) -> Iterator[Batch]:
    """The stream as calls of `size` tokens, with the ids that every stream begins with."""
    ids, sizes = list(beginning), [0] * len(beginning)
    for piece in pieces:
        ids += piece.ids
        sizes += piece.sizes
        while len(ids) > size:
            yield Batch(ids[:size], ids[1 : size + 1], sum(sizes[1 : size + 1]))
            del ids[:size], sizes[:size]
    if len(ids) > 1:
        yield Batch(ids[:-1], ids[1:], sum(sizes[1:]))


def check_logits(logits: np.ndarray, position: int) -> None:
    """Raise `LogitsError` where a row of logits [n, O] is no numbers; the first is that after token `position`."""
    numbers = np.isfinite(logits.max(-1))
    if not numbers.all():
        raise LogitsError(position + int(numbers.argmin()))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, O] in fp64 of `logits` [n, O]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def score_continuations(
    engine: Engine, context: list[int], continuations: list[list[int]]
) -> Iterator[tuple[float, bool]]:
    """Log-probability in nats of each of `continuations` after `context`, and whether it is what greedy decoding gives.

    Slot 0 consumes the context once, if there is a second slot for what follows; else again for each continuation of
    more than one token. Raises `GeckoError` for an empty context, or logits that are no numbers.
    """
    fresh = False
    for ids in continuations:
        if not fresh:
            engine.reset(0)
            engine.extend(0, context)
            first, fresh = engine.logits(0)[None], True
        slot = 0
        if len(ids) > 1:
            if engine.slots > 1:
                slot = 1
                engine.copy(0, slot)
            else:
                fresh = False
        total, greedy, position = 0.0, True, len(context)
        for logits, targets in chain([(first, ids[:1])], _logits_within(engine, slot, ids)):
            check_logits(logits, position)
            position += len(logits)
            log_probabilities = log_softmax(logits)
            total += float(log_probabilities[np.arange(len(targets)), targets].sum())
            greedy = greedy and bool((log_probabilities.argmax(-1) == targets).all())
        yield total, greedy


def _logits_within(engine: Engine, slot: int, ids: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Logits [n, O] before each of the ids but the first, and those ids, a call at a time."""
    for batch in batches([Piece(ids, [0] * len(ids))], [], call_size(engine, logits=True)):
        yield engine.extend_logits(slot, batch.tokens), batch.targets
