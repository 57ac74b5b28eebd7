"""The measuring core of quality: perplexity of a text of any length, and the distance from a baseline.

The text streams through the recurrent state once, so every token has all before it as its context, and memory
does not depend on its length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np
from pydantic import BaseModel

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.measure.scoring import batches, call_size, check_logits, log_softmax
from gecko_mlc.runtime.model import Model
from gecko_mlc.runtime.state.slots import Lease, slots_of
from gecko_mlc.runtime.text.long_text import encode_blocks

SCHEMA_VERSION = 2
# Fewer say too little of how much they vary.
FEWEST_FOR_ERROR = 30


class Estimate(BaseModel):
    """A mean over tokens, and its standard error as if they were independent, None of fewer than `FEWEST_FOR_ERROR`."""

    mean: float
    error: float | None


class Comparison(BaseModel):
    """A model beside its baseline, over the same tokens.

    `kl_divergence` is KL(baseline ‖ model) in nats a token, `top1_agreement` the part of tokens whose likeliest next
    one is the same.
    """

    baseline: str
    baseline_quantization: str
    baseline_perplexity: float
    perplexity_ratio: Estimate
    kl_divergence: Estimate
    top1_agreement: float


class Report(BaseModel):
    """All of an evaluation; the JSON form of `eval`.

    `tokens` were predicted, `bytes` of UTF-8 they stand for: all of the text, but for a first token that nothing
    precedes. `complete` is false when it was interrupted.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    quantization: str
    state_dtype: str
    tokens: int
    bytes: int
    complete: bool
    perplexity: Estimate
    nats_per_token: float
    nats_per_byte: float
    bits_per_byte: float
    tokens_per_second: float
    comparison: Comparison | None = None


class Mean:
    """The mean of numbers that come in arrays, and its standard error."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in `values`."""
        exact = values.astype(np.float64)
        self._count += exact.size
        self._sum += float(exact.sum())
        self._squares += float(exact @ exact)

    @property
    def mean(self) -> float:
        """The mean of what came."""
        return self._sum / self._count

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None of too few numbers."""
        if self._count < FEWEST_FOR_ERROR:
            return None
        variance = max(self._squares / self._count - self.mean**2, 0.0)
        return math.sqrt(variance / (self._count - 1))

    def estimate(self) -> Estimate:
        """Both."""
        return Estimate(mean=self.mean, error=self.error)

    def exponential(self) -> Estimate:
        """The exponential of the mean, with the error that the mean's gives it."""
        value, error = math.exp(self.mean), self.error
        return Estimate(mean=value, error=None if error is None else value * error)


class Divergence:
    """Sums of what a `Comparison` says, over the log-probabilities of a model and of its baseline."""

    def __init__(self, baseline: Model) -> None:
        self._baseline = baseline
        self._surprise, self._difference, self._divergence, self._same = Mean(), Mean(), Mean(), Mean()

    def add(self, ours: np.ndarray, theirs: np.ndarray, targets: list[int]) -> None:
        """Take in the distributions [n, O] before each of the tokens `targets`."""
        rows = np.arange(len(targets))
        self._surprise.add(-theirs[rows, targets])
        self._difference.add(theirs[rows, targets] - ours[rows, targets])
        self._divergence.add((np.exp(theirs) * (theirs - ours)).sum(-1))
        self._same.add(ours.argmax(-1) == theirs.argmax(-1))

    def comparison(self) -> Comparison:
        """What came of it."""
        return Comparison(
            baseline=name(self._baseline),
            baseline_quantization=self._baseline.chat_config.quantization,
            baseline_perplexity=math.exp(self._surprise.mean),
            perplexity_ratio=self._difference.exponential(),
            kl_divergence=self._divergence.estimate(),
            top1_agreement=self._same.mean,
        )


def evaluate(
    model: Model,
    blocks: Iterable[str],
    baseline: Model | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measure `model` on the text that comes in `blocks`, and how far it is from `baseline`; no dialogue is disturbed.

    `progress` is told of the bytes measured. Raises `GeckoError` for a text with nothing to predict, a baseline that
    knows other tokens, or logits that are no numbers; `KeyboardInterrupt` when `interrupted` before anything was
    measured.
    """
    models = [model]
    divergence = None
    if baseline is not None:
        check_baseline(model, baseline)
        models.append(baseline)
        divergence = Divergence(baseline)
    leases = [slots_of(each.engine).lease() for each in models]
    size = call_size(model.engine, logits=baseline is not None)
    surprise, tokens, done, complete = Mean(), 0, 0, True
    begun = time.perf_counter()
    for batch in batches(encode_blocks(model.tokenizer, blocks), model.beginning(), size):
        if interrupted():
            complete = False
            break
        if divergence is None:
            with leases[0] as slot:
                found, _ = model.engine.score(slot, batch.tokens, batch.targets)
        else:
            ours, theirs = (_log_probabilities(lease, batch.tokens) for lease in leases)
            found = ours[np.arange(len(batch.targets)), batch.targets]
            divergence.add(ours, theirs, batch.targets)
        surprise.add(-found)
        tokens += len(batch.targets)
        done += batch.bytes
        progress(done)
    seconds = time.perf_counter() - begun
    if not tokens:
        if not complete:
            raise KeyboardInterrupt
        raise GeckoError("the text has no token to predict: expected at least a few words")
    nats_per_byte = surprise.mean * tokens / max(done, 1)
    return Report(
        model=name(model),
        quantization=model.chat_config.quantization,
        state_dtype=model.engine.metadata.state_dtype,
        tokens=tokens,
        bytes=done,
        complete=complete,
        perplexity=surprise.exponential(),
        nats_per_token=surprise.mean,
        nats_per_byte=nats_per_byte,
        bits_per_byte=nats_per_byte / math.log(2),
        tokens_per_second=tokens / seconds,
        comparison=None if divergence is None else divergence.comparison(),
    )


def _log_probabilities(lease: Lease, tokens: list[int]) -> np.ndarray:
    """Those [n, O] after each of the tokens that come next in a lease's state."""
    first = lease.position + 1
    with lease as slot:
        logits = lease.engine.extend_logits(slot, tokens)
    check_logits(logits, first)
    return log_softmax(logits)


def name(model: Model) -> str:
    """What the model's folder is called."""
    return model.folder.resolve().name


def check_baseline(model: Model, baseline: Model) -> None:
    """Refuse a baseline whose logits are of other tokens, naming what differs."""
    ours, theirs = model.engine.num_outputs, baseline.engine.num_outputs
    if ours != theirs:
        raise GeckoError(f"{baseline.folder}: has logits of {theirs:,} tokens, {model.folder} of {ours:,}")
    here, there = model.tokenizer.vocabulary(), baseline.tokenizer.vocabulary()
    if here != there:
        token = min(here.items() ^ there.items())[0]
        raise GeckoError(
            f"{baseline.folder}: its tokenizer differs from that of {model.folder}: {token!r} is"
            f" {there.get(token, 'missing')} there and {here.get(token, 'missing')} here; KL needs the same tokens"
        )
