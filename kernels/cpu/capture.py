"""`capture` on the CPU: Numba, parallel over neurons, vectorised along them.

1. A thread has a block of neurons and goes through the batch's excerpts, four tokens at a time.
2. Where there are pre-activations, the four rows' activations are computed into a tile, which stays
   in the first-level cache, and written out.
3. They are folded into the block's extremes and sums. At an excerpt's end its largest activations
   meet the gate, and what passes is inserted.
4. The tables are added up by a second pass, over the batch's positions sorted by table row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange, typeof, types
from numba.extending import overload

from fastexplain.kernels import scalars
from fastexplain.kernels.scalars import NO_ID, NONLINEARITIES
from fastexplain.kernels.summary import Batch, Preactivations, Summary

# Neurons that one thread folds at a time, at most. The wider, the longer the runs of memory that
# are read: at [64, 64, 1536] on 2 cores, capture with tables took 7.6 ms with 128, 5.1 with 384 and
# 4.4 with 768. Beyond, the float64 sums (40 bytes a neuron) outgrow the first-level cache.
_WIDEST_BLOCK = 768
_VECTOR = 16  # float32 in the widest vector register

_bin = njit(scalars.histogram_bin)
_precedes = njit(scalars.precedes)
_hash = njit(scalars.excerpt_hash)


def block_width_of(neurons: int) -> int:
    """Neurons in a block, so that all threads have as much to do."""
    threads = get_num_threads()
    rounds = max(-(-neurons // (threads * _WIDEST_BLOCK)), 1)
    return max(-(-neurons // (threads * rounds * _VECTOR)), 1) * _VECTOR


def host_bits(acts: np.ndarray) -> tuple[np.ndarray, bool]:
    """Arrays as Numba takes them, and whether 16 bits are float16, which it lacks on the CPU."""
    if acts.dtype == np.float16:
        return acts.view(np.uint16), True
    return acts, False


def float_of(x, half):
    """One activation, a float or its 16 bits, as float32; the bits are float16 if `half`."""
    raise NotImplementedError("compiled code only")


@overload(float_of)
def _float_of_overload(x, half):
    if isinstance(x, types.Float):
        return lambda x, half: x

    def widen(x, half):
        bits = np.uint32(x)
        if not half:
            return np.uint32(bits << np.uint32(16)).view(np.float32)
        # Exponent and mantissa in float32's places, then the difference in bias as a factor, which
        # also sets subnormals right; NaN and infinity come out as 2**16 and above.
        magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
        magnitude *= np.float32(2.0**112)
        if magnitude >= np.float32(65536.0):
            magnitude = np.float32(np.nan)
        return -magnitude if bits >> np.uint32(15) else magnitude

    return widen


@njit(error_model="numpy")  # a test for zero would keep loops from being vectorised
def _divide(a, b):
    return a / b


@njit(fastmath={"contract"})
def exp_of(x):
    """exp of a float32 to 2 ulp, in operations that vectorise, which libm's does not here.

    exp(x) = 2**n exp(r) with n the integer nearest to x / ln 2: a polynomial in r, fitted at
    Chebyshev nodes, and 2**n as bits. Held between the least normal float32 and the largest.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.7))
    n = np.floor(x * np.float32(1.442695041) + np.float32(0.5))
    # ln 2 in two parts, the first with so few bits that n times it is exact.
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    p = np.float32(0.00836317521) + r * np.float32(0.00139336439)
    p = np.float32(0.166665763) + r * (np.float32(0.0416664667) + r * p)
    p = r + r * r * (np.float32(0.5) + r * p)
    # n is 128 at most, whose power no float32 has: half of it goes into each of two factors.
    half = np.int32(n) >> np.int32(1)
    low = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    high = np.int32((np.int32(n) - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return (np.float32(1) + p) * low * high


def _bits_of(x, like, half):
    """A float32 as one activation of the type of `like`, rounded to nearest, ties to even."""
    raise NotImplementedError("compiled code only")


@overload(_bits_of)
def _bits_of_overload(x, like, half):
    if isinstance(like, types.Float):
        return lambda x, like, half: x

    def narrow(x, like, half):
        bits = np.uint32(np.float32(x).view(np.uint32))
        if not half:
            odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
            return np.uint16(rounded >> np.uint32(16)) if x == x else np.uint16(0x7FC0)
        sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
        magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
        odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
        # The difference in bias off the exponent, and half a unit on: a carry rounds up.
        normal = np.uint32(np.uint32(magnitude - np.uint32(0x38000000)) + np.uint32(0xFFF))
        result = np.uint32(np.uint32(normal + odd) >> np.uint32(13))
        if magnitude < np.uint32(0x38800000):
            # Below 2**-14 adding 0.5 leaves the float16's bits, rounded, at the mantissa's end.
            shifted = np.float32(magnitude.view(np.float32) + np.float32(0.5))
            result = np.uint32(shifted.view(np.uint32) - np.uint32(0x3F000000))
        if magnitude >= np.uint32(0x477FF000):  # rounds to 2**16 or is above, infinity and NaN
            result = np.uint32(0x7C00)
        if magnitude > np.uint32(0x7F800000):
            result = np.uint32(0x7E00)
        return np.uint16(sign | result)

    return narrow


def _named(function, name):
    """The function with a name that no other one has.

    Numba tells compiled functions apart by name, types and a number that each process counts anew.
    Two of one name, from the cache as two processes left them, would be taken for each other.
    """
    function.__name__ = function.__qualname__ = name
    return function


def _activate_by(name):
    """The loop that computes one row's activations, by the nonlinearity of that name.

    It takes (gate, up, gated, half, values, acts). `gate`, `up` and `acts`, which is written, are
    `[w]` as `fold` takes activations; `values`, float32 `[w]`, get them as they were rounded.
    """
    function = scalars.nonlinearity(name, njit(fastmath={"contract"}), exp_of, _divide)

    def activate(gate, up, gated, half, values, acts):
        if gated:
            for j in range(len(values)):
                values[j] = function(float_of(gate[j], half)) * float_of(up[j], half)
        else:
            for j in range(len(values)):
                values[j] = function(float_of(gate[j], half))
        # Apart, since `acts` may be the gate: the compiler need not prove that it is not.
        for j in range(len(values)):
            bits = _bits_of(values[j], gate[j], half)
            acts[j] = bits
            values[j] = float_of(bits, half)

    return njit(fastmath={"contract"})(_named(activate, f"_activate_{name}"))


_gelu, _gelu_tanh, _silu, _relu, _relu2 = (_activate_by(name) for name in NONLINEARITIES)
_GELU, _GELU_TANH, _SILU, _RELU, _RELU2 = range(len(NONLINEARITIES))


def capture(
    acts: np.ndarray, batch: Batch, summary: Summary, pre: Preactivations | None = None
) -> None:
    """See `fastexplain.kernels.capture`."""
    tokens = summary.top_acts.shape[2]
    if acts.dtype != summary.top_acts.dtype:
        raise TypeError(f"activations are {acts.dtype}, the summary {summary.top_acts.dtype}")
    for function, arguments in _calls(acts, batch, summary, pre):
        function(*arguments)
    for position in np.flatnonzero(batch.random_slots >= 0):
        summary.random_acts[batch.random_slots[position]] = acts[position, -tokens:]


def compile_capture(
    acts: np.ndarray, batch: Batch, summary: Summary, pre: Preactivations | None = None
) -> None:
    """Compile what `capture` of such arrays, of any shape, will run; nothing is run."""
    for function, arguments in _calls(acts, batch, summary, pre):
        function.compile(tuple(map(typeof, arguments)))


def _calls(
    acts: np.ndarray, batch: Batch, summary: Summary, pre: Preactivations | None
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The compiled functions that `capture` calls in turn, each with its arguments."""
    bits, half = host_bits(acts)
    gate = up = bits
    gate_start, up_start = 0, 0
    if pre is not None:
        gate, gate_start = host_bits(pre.gate)[0], pre.gate_start
        if pre.up is not None:
            up, up_start = host_bits(pre.up)[0], pre.up_start
    block_width = block_width_of(acts.shape[2])
    faults = np.full(-(-acts.shape[2] // block_width), NO_ID, np.int32)  # by block
    yield (
        _fold_by(None if pre is None else pre.nonlinearity),
        (
            block_width,
            bits,
            half,
            gate,
            gate_start,
            pre is not None and pre.up is not None,
            up,
            up_start,
            batch.ids,
            batch.skip,
            np.uint64(summary.seed),
            summary.top_keys,
            summary.top_ids,
            summary.top_acts.view(bits.dtype),
            summary.bottom_keys,
            summary.bottom_ids,
            summary.bottom_acts.view(bits.dtype),
            summary.sums,
            summary.positive,
            summary.minimum,
            summary.maximum,
            summary.histogram,
            summary.histogram_ids,
            faults,
            summary.fault,
        ),
    )
    if len(batch.segment_rows):
        yield (
            _add_to_tables,
            (
                block_width,
                bits,
                half,
                summary.top_acts.shape[2],
                batch.positions,
                batch.segment_starts,
                batch.segment_rows,
                summary.token_sums,
                summary.pair_sums,
            ),
        )


@njit
def _insert(keys, ids, rows, neuron, key, excerpt, acts, position, lead):
    """Replace the worst exemplar, in slot 0, and bring the new worst there.

    `keys` and `ids` are float32 and int32 `[F, K]`, `rows` `[F, K, T]`, `acts` `[B, L, F]`. `key`
    is a float32, `excerpt` an int32; `neuron`, `position` and `lead` (L - T) are indices.
    """
    slots, tokens = rows.shape[1], rows.shape[2]
    worst = 0
    worst_key, worst_id = key, excerpt
    for slot in range(1, slots):
        if _precedes(worst_key, worst_id, keys[neuron, slot], ids[neuron, slot]):
            worst, worst_key, worst_id = slot, keys[neuron, slot], ids[neuron, slot]
    if worst > 0:
        keys[neuron, 0], ids[neuron, 0] = worst_key, worst_id
        for t in range(tokens):
            rows[neuron, 0, t] = rows[neuron, worst, t]
    keys[neuron, worst], ids[neuron, worst] = key, excerpt
    for t in range(tokens):
        rows[neuron, worst, t] = acts[position, lead + t, neuron]


@njit
def _fold_one(row, half, largest, smallest, powers, counts):
    """Fold one token of w neurons into their sums.

    `row` is `[w]` as `fold` takes activations; `largest` and `smallest` are float32 `[w]`, `powers`
    float64 `[5, w]` and `counts` int32 `[w]`.
    """
    for j in range(len(row)):
        x = float_of(row[j], half)
        largest[j] = max(largest[j], x)
        smallest[j] = min(smallest[j], x)
        counts[j] += x > 0
        wide = np.float64(x)
        square = wide * wide
        powers[0, j] += wide
        powers[1, j] += square
        powers[2, j] += square * wide
        powers[3, j] += square * square
        powers[4, j] += max(wide, 0.0)


@njit
def _fold_four(row_a, row_b, row_c, row_d, half, largest, smallest, powers, counts):
    """`_fold_one` of four tokens: the sums are loaded and stored once, 1.6 times as fast."""
    for j in range(len(row_a)):
        a, b = float_of(row_a[j], half), float_of(row_b[j], half)
        c, d = float_of(row_c[j], half), float_of(row_d[j], half)
        largest[j] = max(largest[j], max(max(a, b), max(c, d)))
        smallest[j] = min(smallest[j], min(min(a, b), min(c, d)))
        counts[j] += np.int32(a > 0) + np.int32(b > 0) + np.int32(c > 0) + np.int32(d > 0)
        wide_a, wide_b, wide_c, wide_d = np.float64(a), np.float64(b), np.float64(c), np.float64(d)
        aa, bb, cc, dd = wide_a * wide_a, wide_b * wide_b, wide_c * wide_c, wide_d * wide_d
        powers[0, j] += (wide_a + wide_b) + (wide_c + wide_d)
        powers[1, j] += (aa + bb) + (cc + dd)
        powers[2, j] += (aa * wide_a + bb * wide_b) + (cc * wide_c + dd * wide_d)
        powers[3, j] += (aa * aa + bb * bb) + (cc * cc + dd * dd)
        powers[4, j] += (max(wide_a, 0.0) + max(wide_b, 0.0)) + (
            max(wide_c, 0.0) + max(wide_d, 0.0)
        )


@functools.cache
def _fold_by(nonlinearity: str | None) -> Any:
    """The pass that makes activations by one nonlinearity, or with None reads those that are there.

    Each is compiled apart. The five in one took twice as long to compile, and a subject needs one.
    """
    # Numba leaves out branches on a constant before it compiles them. Functions in the closure
    # would do without, but they are pickled into the key of Numba's cache, anew in each process.
    kind = -1 if nonlinearity is None else NONLINEARITIES.index(nonlinearity)

    # Loops in place of NumPy's expressions on arrays: those compile to several times the code.
    def fold(
        block_width,
        acts,
        half,
        gate,
        gate_start,
        gated,
        up,
        up_start,
        excerpts,
        skip,
        seed,
        top_keys,
        top_ids,
        top_acts,
        bottom_keys,
        bottom_ids,
        bottom_acts,
        sums,
        positive,
        minimum,
        maximum,
        histogram,
        histogram_ids,
        faults,
        fault,
    ):
        """Fold a batch into the exemplars, sums and histogram, which are changed in place.

        Letters are those of `fastexplain.kernels`, arrays those of `Summary` and `Batch`.

        Args:
            block_width: int, neurons that a thread folds at a time.
            acts: `[B, L, F]`, float32, or uint16 for the bits of 16-bit numbers; written where
                there is a nonlinearity, else read.
            half: bool, whether 16 bits are float16; else they are bfloat16.
            gate, gate_start: `[B, L, W]` as `acts`, and the first of F columns; not read where
                there is no nonlinearity.
            gated: bool, whether there is a factor.
            up, up_start: as `gate`; not read where there is no factor.
            excerpts: int32 `[B]`, ids.
            skip: int, counted tokens begin here, after the L - T positions before them.
            seed: uint64, of the hash.
            top_keys, top_ids, top_acts: float32 `[F, K]`, int32 `[F, K]`, `[F, K, T]` as `acts`.
            bottom_keys, bottom_ids, bottom_acts: the same, with a K that may be 0.
            sums, positive: float64 `[5, F]`, int64 `[F]`.
            minimum, maximum: float32 `[F]`.
            histogram, histogram_ids: int32 `[F, H]`.
            faults: int32 `[blocks]`, `NO_ID`; gets the excerpt that stopped a block.
            fault: int32 `[1]`, the least of these.
        """
        length, neurons = acts.shape[1], acts.shape[2]
        lead = length - top_acts.shape[2]
        for block in prange(len(faults)):
            start = block * block_width
            stop = min(start + block_width, neurons)
            width = stop - start
            powers, counts = np.zeros((5, width)), np.zeros(width, np.int32)
            largest, smallest = np.empty(width, np.float32), np.empty(width, np.float32)
            tile = np.empty((4, width), np.float32)
            for position in range(len(excerpts)):
                excerpt = excerpts[position]
                for j in range(width):
                    largest[j], smallest[j] = -np.inf, np.inf
                first = lead + skip
                t = 0 if kind >= 0 else first
                while t < length:
                    # Four counted tokens at a time; before and after them one.
                    count = 4 if t >= first and t + 4 <= length else 1
                    if kind >= 0:
                        for ahead in range(count):
                            # A row is sliced from the whole array: Numba then knows that it is
                            # contiguous.
                            gate_row = gate[
                                position, t + ahead, gate_start + start : gate_start + stop
                            ]
                            up_row = up[position, t + ahead, up_start + start : up_start + stop]
                            row = acts[position, t + ahead, start:stop]
                            if kind == _GELU:
                                _gelu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _GELU_TANH:
                                _gelu_tanh(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _SILU:
                                _silu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _RELU:
                                _relu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            else:
                                _relu2(gate_row, up_row, gated, half, tile[ahead, :], row)
                    if kind >= 0 and count == 4:
                        _fold_four(
                            tile[0, :], tile[1, :], tile[2, :], tile[3, :],
                            False, largest, smallest, powers, counts,
                        )  # fmt: skip
                    elif count == 4:
                        _fold_four(
                            acts[position, t, start:stop],
                            acts[position, t + 1, start:stop],
                            acts[position, t + 2, start:stop],
                            acts[position, t + 3, start:stop],
                            half,
                            largest,
                            smallest,
                            powers,
                            counts,
                        )
                    elif t >= first:
                        _fold_one(
                            acts[position, t, start:stop], half, largest, smallest, powers, counts
                        )
                    t += count
                # A NaN or an infinity among the activations, and nothing else, spoils their
                # squares.
                spoiled = 0
                for j in range(width):
                    spoiled += not powers[1, j] < np.inf
                if spoiled:
                    # Of the excerpts to come no activation is computed, and none is needed.
                    faults[block] = excerpt
                    break
                for j in range(width):
                    neuron = start + j
                    key, negated = largest[j], -smallest[j]
                    if top_keys.shape[1] > 0 and _precedes(
                        key, excerpt, top_keys[neuron, 0], top_ids[neuron, 0]
                    ):
                        _insert(
                            top_keys, top_ids, top_acts, neuron, key, excerpt, acts, position, lead
                        )
                    if bottom_keys.shape[1] > 0 and _precedes(
                        negated, excerpt, bottom_keys[neuron, 0], bottom_ids[neuron, 0]
                    ):
                        _insert(
                            bottom_keys, bottom_ids, bottom_acts,
                            neuron, negated, excerpt, acts, position, lead,
                        )  # fmt: skip
                    maximum[neuron] = max(maximum[neuron], key)
                    minimum[neuron] = min(minimum[neuron], smallest[j])
                    place = _bin(np.float32(key).view(np.int32))
                    histogram[neuron, place] += 1
                    other = histogram_ids[neuron, place]
                    if other == NO_ID or _hash(np.uint64(excerpt), seed) < _hash(
                        np.uint64(other), seed
                    ):
                        histogram_ids[neuron, place] = excerpt
            for j in range(width):
                for power in range(len(powers)):
                    sums[power, start + j] += powers[power, j]
                positive[start + j] += counts[j]
        for block in range(len(faults)):
            fault[0] = min(fault[0], faults[block])

    return njit(parallel=True, cache=True, nogil=True)(_named(fold, f"_fold_{nonlinearity}"))


@njit(parallel=True, cache=True, nogil=True)
def _add_to_tables(
    block_width,
    acts,
    half,
    tokens,
    positions,
    segment_starts,
    segment_rows,
    token_sums,
    pair_sums,
):
    """Add max(activation, 0) up by table row, segment by segment.

    Args:
        block_width: int, neurons that a thread adds up at a time.
        acts, half: `[B, L, F]`, as `fold` takes them.
        tokens: int, T.
        positions: int32 `[2 B T]`, indices of counted tokens among B * T.
        segment_starts, segment_rows: int32 `[S + 1]` and `[S]`, see `Batch`.
        token_sums, pair_sums: float32 `[V, F]` and `[P, F]`, changed in place.
    """
    length, neurons = acts.shape[1], acts.shape[2]
    lead = length - tokens
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        start = block * block_width
        stop = min(start + block_width, neurons)
        total = np.empty(stop - start, np.float32)
        for segment in range(len(segment_rows)):
            begin, end = segment_starts[segment], segment_starts[segment + 1]
            if begin == end:
                break
            for j in range(len(total)):
                total[j] = 0
            for place in range(begin, end):
                position = positions[place]
                row = acts[position // tokens, lead + position % tokens, start:stop]
                for j in range(len(row)):
                    total[j] += max(float_of(row[j], half), np.float32(0))
            row_of_table = segment_rows[segment]
            if row_of_table < len(token_sums):
                sums = token_sums[row_of_table, start:stop]
            else:
                sums = pair_sums[row_of_table - len(token_sums), start:stop]
            for j in range(len(total)):
                sums[j] += total[j]
