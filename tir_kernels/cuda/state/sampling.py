"""Sampling for CUDA, a block for each row.

Thresholds are found on the ordered bit patterns as on a CPU, but several bits at a time: each digit from a histogram of
the keys that agree in the digits before. Probabilities are added up as integers, which is exact in any order.
"""

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.library import NO_TOKEN, RECENT_TOKENS, SAMPLING_PARAMETERS
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import launch_dependents, wait_for_predecessor
from gecko_mlc.tir_kernels.cuda.ptx.reductions import (
    add_wide,
    count_one,
    renew,
    warp_first_largest,
    warp_prefix,
    warp_total,
)
from gecko_mlc.tir_kernels.expressions import LARGEST, Expr, f32
from gecko_mlc.tir_kernels.hardware import divide
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.threefry import random_word

THREADS = 1024
WARPS = THREADS // 32
# Values that a thread keeps in registers; where there are more, every pass makes them from the logits.
HELD = 32
# Vectors of counts that a thread has on their way.
COUNT_LOADS = 2
# Digits of a key; the last overlaps with the one before.
DIGITS, DIGIT_BITS = 3, 11
BINS = 1 << DIGIT_BITS


@functools.cache
def sample(outputs: int, candidates: int, slots: int) -> tirx.PrimFunc:
    """Kernel (slots [b], logits [S, O], sampling [S, 7], random [S, 3] (seed, counter), counts [S, O],
    token [S], recent [S, 64]).

    Draws one of the first `candidates` outputs for each named slot, and updates random, counts, token and
    recent in place. A temperature of 0 takes the first largest score. `NO_TOKEN` is drawn, and not counted, where
    logits are no numbers: one is NaN or infinity, or all are minus infinity.
    """
    width = math.gcd(outputs, 4)
    vectors = divide(candidates, width)
    # Warps have successive outputs, lanes successive vectors; a thread has `held` vectors at a time.
    steps = divide(vectors, THREADS)
    held = steps if steps * width <= HELD else HELD // 2 // width
    rounds = divide(steps, held)

    def ordered(score: Expr) -> Expr:
        """The bits of a score, made monotone."""
        word = T.reinterpret("uint32", score)
        return T.Select(word >= T.uint32(0x80000000), word ^ T.uint32(0xFFFFFFFF), word | T.uint32(0x80000000))

    def bits(value: Expr) -> Expr:
        return T.reinterpret("uint32", value)

    def mass(weight: Expr, least: Expr) -> Expr:
        """A weight from 0 to 1 in units of 2⁻³⁰; 0 if its bits are below `least`."""
        significand = ((bits(weight) & T.uint32(0x7FFFFF)) | T.uint32(0x800000)) << T.uint32(7)
        shift = T.min(T.uint32(127) - (bits(weight) >> T.uint32(23)), T.uint32(31))
        return T.Select(bits(weight) >= least, significand >> shift, T.uint32(0))

    def wide(high: Expr, low: Expr) -> Expr:
        """A 64-bit integer of two words."""
        return (T.Cast("uint64", high) << T.uint64(32)) | T.Cast("uint64", low)

    @kernel
    def draw(
        slots_handle: T.handle,
        logits: T.Buffer((slots, outputs), "float32"),
        sampling: T.Buffer((slots, len(SAMPLING_PARAMETERS)), "float32"),
        random: T.Buffer((slots, 3), "int32"),
        counts: T.Buffer((slots, outputs), "int32"),
        token: T.Buffer((slots,), "int32"),
        recent: T.Buffer((slots, RECENT_TOKENS), "int32"),
    ):
        b = T.int32()
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        row = T.launch_thread("blockIdx.x", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        low = T.alloc_buffer((BINS,), "uint32", scope="shared")
        high = T.alloc_buffer((BINS,), "uint32", scope="shared")
        totals = T.alloc_buffer((WARPS,), "uint64", scope="shared")
        maxima = T.alloc_buffer((WARPS,), scope="shared")
        firsts = T.alloc_buffer((WARPS,), "int32", scope="shared")
        found_digit = T.alloc_buffer((1,), "uint32", scope="shared")
        found_need = T.alloc_buffer((1,), "uint64", scope="shared")
        chosen = T.alloc_buffer((1,), "int32", scope="shared")
        values = T.alloc_buffer((held * width,), scope="local")
        vector = T.alloc_buffer((width,), scope="local")
        seen = T.alloc_buffer((COUNT_LOADS * width,), "int32", scope="local")
        maximum = T.alloc_buffer((1,), scope="local")
        first = T.alloc_buffer((1,), "int32", scope="local")
        numbers = T.alloc_buffer((1,), "bool", scope="local")
        threshold = T.alloc_buffer((1,), "uint32", scope="local")
        decided = T.alloc_buffer((1,), "uint32", scope="local")
        least_score = T.alloc_buffer((1,), "uint32", scope="local")
        least_weight = T.alloc_buffer((1,), "uint32", scope="local")
        # Sums: of the thread, of the warp up to the thread, of the warps before, of the block.
        own = T.alloc_buffer((1,), "uint64", scope="local")
        inclusive = T.alloc_buffer((1,), "uint64", scope="local")
        before = T.alloc_buffer((1,), "uint64", scope="local")
        total = T.alloc_buffer((1,), "uint64", scope="local")
        need = T.alloc_buffer((1,), "uint64", scope="local")
        words = T.alloc_buffer((2,), "uint32", scope="local")
        keys = T.alloc_buffer((3,), "uint32", scope="local")
        lane: T.let = tx % 32
        warp: T.let = tx // 32

        launch_dependents()
        wait_for_predecessor()
        slot: T.let = slot_ids[row]
        temperature: T.let = sampling[slot, 0]
        # Finite, so that the largest score's difference to itself stays 0.
        inverse: T.let = T.min(T.float32(1) / temperature, f32(LARGEST))
        repetition: T.let = sampling[slot, 4]
        presence: T.let = sampling[slot, 5]
        frequency: T.let = sampling[slot, 6]

        @T.inline
        def penalize(i, count):
            # What is no number stays so.
            if count > 0 and T.abs(values[i]) <= f32(LARGEST):
                if values[i] > T.float32(0):
                    values[i] = values[i] / repetition
                else:
                    values[i] = values[i] * repetition
                values[i] = values[i] - presence - frequency * T.Cast("float32", count)
                values[i] = T.max(T.min(values[i], f32(LARGEST)), f32(-LARGEST))

        @T.inline
        def load_scores(r):
            """values = the scores of a round, minus infinity beyond the candidates."""
            start: T.let = (warp * rounds + r) * held * 32 + lane
            for i in T.unroll(held * width):
                values[i] = T.float32(-math.inf)
            for j in T.unroll(held):
                if start + j * 32 < vectors:
                    for v in T.vectorized(width):
                        values[j * width + v] = logits[slot, (start + j * 32) * width + v]
            if repetition != T.float32(1) or presence != T.float32(0) or frequency != T.float32(0):
                for k in T.unroll(divide(held, COUNT_LOADS)):
                    for j in T.unroll(COUNT_LOADS):
                        for v in T.vectorized(width):
                            seen[j * width + v] = 0
                        if k * COUNT_LOADS + j < held and start + (k * COUNT_LOADS + j) * 32 < vectors:
                            for v in T.vectorized(width):
                                seen[j * width + v] = counts[slot, (start + (k * COUNT_LOADS + j) * 32) * width + v]
                    for j in T.unroll(COUNT_LOADS):
                        for v in T.unroll(width):
                            if k * COUNT_LOADS + j < held:
                                penalize((k * COUNT_LOADS + j) * width + v, seen[j * width + v])
            if candidates % width > 0:
                for j in T.unroll(held):
                    for v in T.unroll(width):
                        if (start + j * 32) * width + v >= candidates:
                            values[j * width + v] = T.float32(-math.inf)

        @T.inline
        def weigh():
            """Scores become weights, the largest 1."""
            for i in T.unroll(held * width):
                values[i] = T.Select(
                    ordered(values[i]) >= least_score[0], T.exp((values[i] - maximum[0]) * inverse), f32(0.0)
                )

        @T.inline
        def scores(r):
            if rounds > 1:
                load_scores(r)

        @T.inline
        def weights(r):
            if rounds > 1:
                load_scores(r)
                weigh()

        @T.inline
        def each(prepare, visit):
            """visit(i, o) for the thread's values and the outputs that they are of."""
            for r in T.serial(rounds):
                prepare(r)
                for i in T.unroll(held * width):
                    renew(T.address_of(values[i]))
                for j in T.unroll(held):
                    for v in T.unroll(width):
                        visit(j * width + v, (((warp * rounds + r) * held + j) * 32 + lane) * width + v)

        @T.inline
        def scan():
            """The other sums of `own`; two calls need a barrier between them."""
            inclusive[0] = warp_prefix(own[0])
            if lane == 31:
                totals[warp] = inclusive[0]
            T.tvm_storage_sync("shared")
            before[0] = warp_total(T.Select(lane < warp, totals[lane], T.uint64(0)))
            total[0] = warp_total(totals[lane])

        @T.inline
        def select(prepare, key, add, needed):
            """threshold = the largest such that the values with a key of at least that make up needed(their total)."""
            threshold[0] = T.uint32(0)
            decided[0] = T.uint32(0)
            for digit in T.serial(DIGITS, annotations={"disable_unroll": True}):
                shift: T.let = T.Cast("uint32", T.max(32 - (digit + 1) * DIGIT_BITS, 0))
                for k in T.unroll(BINS // THREADS):
                    low[k * THREADS + tx] = T.uint32(0)
                    high[k * THREADS + tx] = T.uint32(0)
                T.tvm_storage_sync("shared")

                @T.inline
                def count(i, o):
                    if ((key(values[i]) ^ threshold[0]) & decided[0]) == T.uint32(0):
                        add(values[i], (key(values[i]) >> shift) & T.uint32(BINS - 1))

                each(prepare, count)
                T.tvm_storage_sync("shared")
                # Two bins of each thread, the highest of the first.
                bin: T.let = BINS - 1 - 2 * tx
                own[0] = wide(high[bin], low[bin]) + wide(high[bin - 1], low[bin - 1])
                scan()
                if digit == 0:
                    need[0] = needed(total[0])
                before[0] = before[0] + inclusive[0] - own[0]
                if before[0] < need[0] and need[0] <= before[0] + own[0]:
                    inclusive[0] = before[0] + wide(high[bin], low[bin])
                    if need[0] <= inclusive[0]:
                        found_digit[0] = T.Cast("uint32", bin)
                        found_need[0] = need[0] - before[0]
                    else:
                        found_digit[0] = T.Cast("uint32", bin - 1)
                        found_need[0] = need[0] - inclusive[0]
                T.tvm_storage_sync("shared")
                need[0] = found_need[0]
                threshold[0] = (threshold[0] & decided[0]) | (found_digit[0] << shift)
                decided[0] = T.uint32(0xFFFFFFFF) << shift

        # 1. Whether logits are numbers; the largest score.
        numbers[0] = True
        maximum[0] = T.float32(-math.inf)
        first[0] = NO_TOKEN

        @T.inline
        def compare(i, o):
            numbers[0] = numbers[0] and values[i] <= f32(LARGEST)
            if values[i] > maximum[0]:
                maximum[0] = values[i]
                first[0] = o

        each(load_scores, compare)
        if not numbers[0]:
            # Larger than all others.
            maximum[0] = T.float32(math.inf)
            first[0] = NO_TOKEN
        warp_first_largest(T.address_of(maximum[0]), T.address_of(first[0]))
        if lane == 0:
            maxima[warp] = maximum[0]
            firsts[warp] = first[0]
        T.tvm_storage_sync("shared")
        maximum[0] = maxima[lane]
        first[0] = firsts[lane]
        warp_first_largest(T.address_of(maximum[0]), T.address_of(first[0]))
        if tx == 0:
            chosen[0] = first[0]
        if temperature > T.float32(0) and first[0] != NO_TOKEN:
            # 2. top-k: the largest threshold that k scores reach.
            least_score[0] = T.uint32(0)
            if sampling[slot, 1] > T.float32(0):
                k: T.let = T.max(T.Cast("uint32", sampling[slot, 1]), T.uint32(1))
                select(
                    scores,
                    ordered,
                    lambda _, bin: count_one(T.address_of(low[bin])),
                    lambda total: T.Select(total < T.Cast("uint64", k), total, T.Cast("uint64", k)),
                )
                least_score[0] = threshold[0]
            if rounds == 1:
                weigh()
            # 3. top-p: the largest threshold whose candidates hold the mass.
            least_weight[0] = T.uint32(0)
            if sampling[slot, 2] < T.float32(1):
                select(
                    weights,
                    bits,
                    lambda weight, bin: add_wide(
                        T.address_of(low[bin]), T.address_of(high[bin]), mass(weight, T.uint32(0))
                    ),
                    lambda total: T.Cast(
                        "uint64",
                        T.ceil(T.Cast("float64", T.max(sampling[slot, 2], f32(2.0**-30))) * T.Cast("float64", total)),
                    ),
                )
                least_weight[0] = threshold[0]
            # 4. min-p, relative to the largest weight, which is 1.
            least_weight[0] = T.max(least_weight[0], T.reinterpret("uint32", T.max(sampling[slot, 3], T.float32(0))))
            # 5. The draw: the first candidate with which the sum exceeds a random part of the total.
            own[0] = T.uint64(0)

            @T.inline
            def add(i, o):
                own[0] = own[0] + T.Cast("uint64", mass(values[i], least_weight[0]))

            each(weights, add)
            scan()
            random_word(words, keys, random, slot)
            # ⌊total · word / 2²⁴⌋ of a word of 24 bits.
            word: T.let = T.Cast("uint64", words[0] >> T.uint32(8))
            need[0] = (total[0] >> T.uint64(24)) * word + (((total[0] & T.uint64(0xFFFFFF)) * word) >> T.uint64(24))
            if before[0] <= need[0] and need[0] < before[0] + totals[warp]:
                for r in T.serial(rounds):
                    weights(r)
                    for j in T.unroll(held):
                        own[0] = T.uint64(0)
                        for v in T.unroll(width):
                            add(j * width + v, 0)
                        total[0] = before[0] + warp_total(own[0])
                        if before[0] <= need[0] and need[0] < total[0]:
                            first[0] = (((warp * rounds + r) * held + j) * 32 + lane) * width
                            for v in T.unroll(width):
                                vector[v] = values[j * width + v]
                            inclusive[0] = before[0] + warp_prefix(own[0]) - own[0]
                        before[0] = total[0]
                for v in T.unroll(width):
                    own[0] = inclusive[0] + T.Cast("uint64", mass(vector[v], least_weight[0]))
                    if inclusive[0] <= need[0] and need[0] < own[0]:
                        chosen[0] = first[0] + v
                    inclusive[0] = own[0]
        T.tvm_storage_sync("shared")
        if tx == 0:
            token[slot] = chosen[0]
            if chosen[0] != NO_TOKEN:
                counts[slot, chosen[0]] = counts[slot, chosen[0]] + 1
            recent[slot, random[slot, 2] % RECENT_TOKENS] = chosen[0]
            random[slot, 2] = random[slot, 2] + 1

    return draw
