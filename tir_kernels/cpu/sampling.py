"""Sampling on the device: penalties, temperature, top-k, top-p, min-p, and a counter-based generator.

Thresholds are found bit by bit on the ordered bit patterns of the numbers, so nothing is sorted, and
candidates tied at a threshold are all kept. A seed and a count of tokens decide the draw on every target.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.library import NO_TOKEN, RECENT_TOKENS, SAMPLING_PARAMETERS
from gecko_mlc.tir_kernels.cpu.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.expressions import LARGEST, MASKED, Expr, exp, f32
from gecko_mlc.tir_kernels.hardware import CPU
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.threefry import random_word


@functools.cache
def sample(outputs: int, candidates: int, slots: int, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (slots [b], logits [S, O], sampling [S, 7], random [S, 3] (seed, counter), counts [S, O],
    token [S], recent [S, 64]) → scores, weights [b, O] (scratch).

    Draws one of the first `candidates` outputs for each named slot, and updates random, counts, token and
    recent in place. A temperature of 0 takes the first largest score. `NO_TOKEN` is drawn, and not counted, where
    logits are no numbers: one is NaN or infinity, or all are minus infinity.
    """
    width = hardware.width(candidates)

    def ordered(bits: Expr) -> Expr:
        """uint32 bits of a float, made monotone."""
        return T.Select(bits >= T.uint32(0x80000000), bits ^ T.uint32(0xFFFFFFFF), bits | T.uint32(0x80000000))

    @T.inline
    def sum_where(total, width, count, term):
        """total[0] = Σ term(o)"""
        lanes = T.alloc_buffer((1, width))
        clear(lanes, 1, width)
        for o in T.serial(count // width):
            for lane in T.vectorized(width):
                lanes[0, lane] = lanes[0, lane] + term(o * width + lane)
        sum_lanes(total, lanes, 1, width)

    @kernel
    def compute(
        slots_handle: T.handle,
        logits: T.Buffer((slots, outputs), "float32"),
        sampling: T.Buffer((slots, len(SAMPLING_PARAMETERS)), "float32"),
        random: T.Buffer((slots, 3), "int32"),
        counts: T.Buffer((slots, outputs), "int32"),
        token: T.Buffer((slots,), "int32"),
        recent: T.Buffer((slots, RECENT_TOKENS), "int32"),
        scores_handle: T.handle,
        weights_handle: T.handle,
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        scores = T.match_buffer(scores_handle, (b, outputs), "float32")
        weights = T.match_buffer(weights_handle, (b, outputs), "float32")
        for i in T.serial(b):
            maximum = T.alloc_buffer((1,))
            total = T.alloc_buffer((1,))
            reached = T.alloc_buffer((1,))
            threshold = T.alloc_buffer((1,), "uint32")
            chosen = T.alloc_buffer((1,), "int32")
            trial = T.alloc_buffer((1,), "uint32")
            words = T.alloc_buffer((2,), "uint32")
            keys = T.alloc_buffer((3,), "uint32")
            slot: T.let = slot_ids[i]
            temperature: T.let = sampling[slot, 0]
            repetition: T.let = sampling[slot, 4]
            presence: T.let = sampling[slot, 5]
            frequency: T.let = sampling[slot, 6]
            # 1. Whether logits are numbers; penalties; the largest score.
            sum_where(total, width, candidates, lambda o: T.Select(logits[slot, o] <= f32(LARGEST), f32(0.0), f32(1.0)))
            for o in T.serial(candidates // width):
                for lane in T.vectorized(width):
                    scores[i, o * width + lane] = logits[slot, o * width + lane]
            if repetition != T.float32(1) or presence != T.float32(0) or frequency != T.float32(0):
                for o in T.serial(candidates):
                    if counts[slot, o] > 0 and scores[i, o] > T.float32(-math.inf):
                        if scores[i, o] > T.float32(0):
                            scores[i, o] = scores[i, o] / repetition
                        else:
                            scores[i, o] = scores[i, o] * repetition
                        scores[i, o] = scores[i, o] - presence - frequency * T.Cast("float32", counts[slot, o])
                        scores[i, o] = T.max(T.min(scores[i, o], f32(LARGEST)), f32(-LARGEST))
            maximum[0] = T.float32(-math.inf)
            chosen[0] = NO_TOKEN
            if total[0] == T.float32(0):
                for o in T.serial(candidates):
                    if scores[i, o] > maximum[0]:
                        maximum[0] = scores[i, o]
                        chosen[0] = o
            if temperature > T.float32(0) and chosen[0] != NO_TOKEN:
                # A temperature near zero makes every other score infinitely smaller than the largest.
                for o in T.serial(candidates // width):
                    for lane in T.vectorized(width):
                        weights[i, o * width + lane] = exp((scores[i, o * width + lane] - maximum[0]) / temperature)
                # 2. top-k: the largest threshold that k scores reach.
                if sampling[slot, 1] > T.float32(0):
                    threshold[0] = T.uint32(0)
                    for bit in T.serial(32):
                        trial[0] = threshold[0] | (T.uint32(1) << T.Cast("uint32", 31 - bit))
                        sum_where(
                            reached,
                            width,
                            candidates,
                            lambda o: T.Select(
                                ordered(T.reinterpret("uint32", scores[i, o])) >= trial[0],
                                f32(1.0),
                                f32(0.0),
                            ),
                        )
                        if reached[0] >= sampling[slot, 1]:
                            threshold[0] = trial[0]
                    for o in T.serial(candidates):
                        if ordered(T.reinterpret("uint32", scores[i, o])) < threshold[0]:
                            weights[i, o] = T.float32(0)
                # 3. top-p: the largest threshold whose candidates hold the mass.
                if sampling[slot, 2] < T.float32(1):
                    sum_where(total, width, candidates, lambda o: weights[i, o])
                    threshold[0] = T.uint32(0)
                    for bit in T.serial(32):
                        trial[0] = threshold[0] | (T.uint32(1) << T.Cast("uint32", 31 - bit))
                        sum_where(
                            reached,
                            width,
                            candidates,
                            lambda o: T.Select(
                                T.reinterpret("uint32", weights[i, o]) >= trial[0],
                                weights[i, o],
                                f32(0.0),
                            ),
                        )
                        if reached[0] >= T.max(sampling[slot, 2], f32(2.0**-30)) * total[0]:
                            threshold[0] = trial[0]
                    for o in T.serial(candidates):
                        if T.reinterpret("uint32", weights[i, o]) < threshold[0]:
                            weights[i, o] = T.float32(0)
                # 4. min-p, relative to the largest weight, which is 1.
                for o in T.serial(candidates):
                    if weights[i, o] < sampling[slot, 3]:
                        weights[i, o] = T.float32(0)
                # 5. The draw.
                random_word(words, keys, random, slot)
                sum_where(total, width, candidates, lambda o: weights[i, o])
                total[0] = total[0] * T.Cast("float32", T.Cast("int32", words[0] >> T.uint32(8))) * T.float32(2.0**-24)
                for o in T.serial(candidates):
                    if total[0] >= T.float32(0) and weights[i, o] > T.float32(0):
                        chosen[0] = o
                        total[0] = total[0] - weights[i, o]
            token[slot] = chosen[0]
            if chosen[0] != NO_TOKEN:
                counts[slot, chosen[0]] = counts[slot, chosen[0]] + 1
            recent[slot, random[slot, 2] % RECENT_TOKENS] = chosen[0]
            random[slot, 2] = random[slot, 2] + 1

    return compute


@functools.cache
def score(outputs: int, hardware: CPU) -> tirx.PrimFunc:
    """Kernel (logits [n, O], targets [n] int32) → log-probabilities [n], entropies [n], all fp32."""
    width = hardware.width(outputs)

    @kernel
    def compute(
        logits_handle: T.handle,
        targets_handle: T.handle,
        log_probabilities_handle: T.handle,
        entropies_handle: T.handle,
    ):
        n = T.int32()
        logits = T.match_buffer(logits_handle, (n, outputs), "float32")
        targets = T.match_buffer(targets_handle, (n,), "int32")
        log_probabilities = T.match_buffer(log_probabilities_handle, (n,), "float32")
        entropies = T.match_buffer(entropies_handle, (n,), "float32")
        for i in T.parallel(n):
            maximum = T.alloc_buffer((1,))
            total = T.alloc_buffer((1,))
            mean = T.alloc_buffer((1,))
            totals = T.alloc_buffer((1, width))
            means = T.alloc_buffer((1, width))
            maximum[0] = T.float32(MASKED)
            for o in T.serial(outputs):
                maximum[0] = T.max(maximum[0], logits[i, o])
            clear(totals, 1, width)
            clear(means, 1, width)
            for o in T.serial(outputs // width):
                for lane in T.vectorized(width):
                    totals[0, lane] = totals[0, lane] + exp(logits[i, o * width + lane] - maximum[0])
                    means[0, lane] = means[0, lane] + exp(logits[i, o * width + lane] - maximum[0]) * (
                        logits[i, o * width + lane] - maximum[0]
                    )
            sum_lanes(total, totals, 1, width)
            sum_lanes(mean, means, 1, width)
            log_probabilities[i] = logits[i, targets[i]] - maximum[0] - T.log(total[0])
            entropies[i] = T.log(total[0]) - mean[0] / total[0]

    return compute
