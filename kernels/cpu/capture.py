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
from numba import njit, prange, typeof

from fastexplain.kernels import scalars
from fastexplain.kernels.cpu.words import (
    block_width_of,
    float_of,
    gelu,
    gelu_tanh,
    host_bits,
    named,
    relu,
    relu2,
    silu,
)
from fastexplain.kernels.scalars import NO_ID, NONLINEARITIES
from fastexplain.kernels.summary import Batch, Preactivations, Summary, moved

_bin = njit(scalars.histogram_bin)
_precedes = njit(scalars.precedes)
_hash = njit(scalars.excerpt_hash)
_GELU, _GELU_TANH, _SILU, _RELU, _RELU2 = range(len(NONLINEARITIES))


def capture(
    acts: np.ndarray, batch: Batch, summary: Summary, pre: Preactivations | None = None
) -> None:
    """See `fastexplain.kernels.capture`."""
    tokens = summary.top_acts.shape[2]
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
    gate, up, gate_start, up_start = bits, None, 0, 0
    if pre is not None:
        _, gate, up, gate_start, up_start = moved(pre, lambda array: host_bits(array)[0])
    block_width = block_width_of(acts.shape[2])
    faults = np.full(-(-acts.shape[2] // block_width), NO_ID, np.int32)  # by block
    kept = moved(summary, lambda array: host_bits(array)[0])
    gated = up is not None
    sources = gate, gate_start, gated, up if gated else gate, up_start
    fold = _fold_by(None if pre is None else pre.nonlinearity)
    yield fold, (block_width, bits, half, *sources, batch, faults, *kept)
    if len(batch.segment_rows):
        tables = summary.token_sums, summary.pair_sums, summary.triple_sums
        yield _add_to_tables, (block_width, bits, half, summary.top_acts.shape[2], batch, *tables)


@njit
def insert(keys, ids, rows, key, excerpt, acts, position, lead, neuron):
    """Replace a neuron's worst exemplar, in slot 0, and bring the new worst there.

    `keys` and `ids` are float32 and int32 `[K]`, `rows` `[K, T]`, `acts` `[B, L, F]`. `key` is a
    float32, `excerpt` an int32; `position`, `lead` (L - T) and `neuron` are indices. Returns the
    slot of the new one: what was there before, if it is another than 0, is in slot 0 now.
    """
    slots, tokens = rows.shape
    worst = 0
    worst_key, worst_id = key, excerpt
    for slot in range(1, slots):
        if _precedes(worst_key, worst_id, keys[slot], ids[slot]):
            worst, worst_key, worst_id = slot, keys[slot], ids[slot]
    if worst > 0:
        keys[0], ids[0] = worst_key, worst_id
        for t in range(tokens):
            rows[0, t] = rows[worst, t]
    keys[worst], ids[worst] = key, excerpt
    for t in range(tokens):
        rows[worst, t] = acts[position, lead + t, neuron]
    return worst


@njit
def _keep(histogram_ids, neuron, place, excerpt, excerpt_hash, seed):
    """Take an excerpt into a bin, whose last place is empty or has a larger hash.

    `histogram_ids` is int32 `[D, F, H]`, `excerpt` an int32, the hash and the seed are uint64.
    """
    slot = len(histogram_ids) - 1
    while slot > 0:
        other = histogram_ids[slot - 1, neuron, place]
        if other != NO_ID and _hash(np.uint64(other), seed) < excerpt_hash:
            break
        histogram_ids[slot, neuron, place] = other
        slot -= 1
    histogram_ids[slot, neuron, place] = excerpt


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
    # What is written is an argument: Numba drops writes to a tuple's arrays as dead code.
    def fold(
        block_width, acts, half, gate, gate_start, gated, up, up_start, batch, faults,
        top_keys, top_ids, top_acts, bottom_keys, bottom_ids, bottom_acts, random_ids, random_acts,
        sums, positive, minimum, maximum, histogram, histogram_ids, token_sums, pair_sums,
        triple_sums, fault, seed,
    ):  # fmt: skip
        """Fold a batch into the exemplars, sums and histogram, which are changed in place.

        Letters are those of `fastexplain.kernels`.

        Args:
            block_width: int, neurons that a thread folds at a time.
            acts: `[B, L, F]`, float32, or uint16 for the bits of 16-bit numbers; written where
                there is a nonlinearity, else read.
            half: bool, whether 16 bits are float16; else they are bfloat16.
            gate, gate_start: `[B, L, W]` as `acts`, and the first of F columns; not read where
                there is no nonlinearity.
            gated: bool, whether there is a factor.
            up, up_start: as `gate`; not read where there is no factor.
            batch: a `Batch`.
            faults: int32 `[blocks]`, `NO_ID`; gets the excerpt that stopped a block.
            top_keys and on: those of a `Summary`, in its order, float16 as uint16.
        """
        seed = np.uint64(seed)
        length, neurons = acts.shape[1], acts.shape[2]
        lead = length - top_acts.shape[2]
        first = lead + batch.skip
        for block in prange(len(faults)):
            start = block * block_width
            stop = min(start + block_width, neurons)
            width = stop - start
            powers, counts = np.zeros((5, width)), np.zeros(width, np.int32)
            largest, smallest = np.empty(width, np.float32), np.empty(width, np.float32)
            tile = np.empty((4, width), np.float32)
            for position in range(len(batch.ids)):
                excerpt = batch.ids[position]
                excerpt_hash = _hash(np.uint64(excerpt), seed)
                for j in range(width):
                    largest[j], smallest[j] = -np.inf, np.inf
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
                                gelu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _GELU_TANH:
                                gelu_tanh(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _SILU:
                                silu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            elif kind == _RELU:
                                relu(gate_row, up_row, gated, half, tile[ahead, :], row)
                            else:
                                relu2(gate_row, up_row, gated, half, tile[ahead, :], row)
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
                        insert(
                            top_keys[neuron], top_ids[neuron], top_acts[neuron],
                            key, excerpt, acts, position, lead, neuron,
                        )  # fmt: skip
                    if bottom_keys.shape[1] > 0 and _precedes(
                        negated, excerpt, bottom_keys[neuron, 0], bottom_ids[neuron, 0]
                    ):
                        insert(
                            bottom_keys[neuron], bottom_ids[neuron], bottom_acts[neuron],
                            negated, excerpt, acts, position, lead, neuron,
                        )  # fmt: skip
                    maximum[neuron] = max(maximum[neuron], key)
                    minimum[neuron] = min(minimum[neuron], smallest[j])
                    place = _bin(np.float32(key).view(np.int32))
                    histogram[neuron, place] += 1
                    # Past the first excerpts of a bin the last that it keeps rejects nearly all.
                    last = histogram_ids[len(histogram_ids) - 1, neuron, place]
                    if last == NO_ID or excerpt_hash < _hash(np.uint64(last), seed):
                        _keep(histogram_ids, neuron, place, excerpt, excerpt_hash, seed)
            for j in range(width):
                for power in range(len(powers)):
                    sums[power, start + j] += powers[power, j]
                positive[start + j] += counts[j]
        for block in range(len(faults)):
            fault[0] = min(fault[0], faults[block])

    return njit(parallel=True, cache=True, nogil=True)(named(fold, f"_fold_{nonlinearity}"))


@njit(parallel=True, cache=True, nogil=True)
def _add_to_tables(block_width, acts, half, tokens, batch, token_sums, pair_sums, triple_sums):
    """Add max(activation, 0) up by table row, segment by segment.

    `tokens` is T; the other arguments are those of `fold`.
    """
    length, neurons = acts.shape[1], acts.shape[2]
    lead, segment_starts = length - tokens, batch.segment_starts
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        start = block * block_width
        stop = min(start + block_width, neurons)
        total = np.empty(stop - start, np.float32)
        for segment in range(len(batch.segment_rows)):
            begin, end = segment_starts[segment], segment_starts[segment + 1]
            if begin == end:
                break
            for j in range(len(total)):
                total[j] = 0
            for place in range(begin, end):
                position = batch.positions[place]
                row = acts[position // tokens, lead + position % tokens, start:stop]
                for j in range(len(row)):
                    total[j] += max(float_of(row[j], half), np.float32(0))
            token = batch.segment_rows[segment]
            pair = token - len(token_sums)
            triple = pair - len(pair_sums)
            if pair < 0:
                sums = token_sums[token, start:stop]
            elif triple < 0:
                sums = pair_sums[pair, start:stop]
            else:
                sums = triple_sums[triple, start:stop]
            for j in range(len(total)):
                sums[j] += total[j]
