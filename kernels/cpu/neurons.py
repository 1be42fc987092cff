"""All neurons at once on the CPU: Numba, parallel over neurons.

`merge` is the reference's: it waits for memory, so that compiled code took as long (42 ms for 1,536
neurons with 20 exemplars and 5,800 table rows).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from fastexplain.kernels import scalars
from fastexplain.kernels.cpu.threads import threads_for
from fastexplain.kernels.cpu.words import block_width_of, float_of, host_bits
from fastexplain.kernels.reference import merge
from fastexplain.kernels.summary import Agreement, HeldOut, LookupTables

__all__ = ["correlate", "discretize", "lookup", "merge"]

_discretize_one = njit(scalars.discretize_one)
_counted = njit(scalars.counted)
_remaining = njit(scalars.remaining)
# Counts smaller than what is held out, a wrong argument, may divide by 0: no exception, for that
# would come out of Numba as a SystemError.
_token_estimate = njit(error_model="numpy")(scalars.token_estimate)
_pair_estimate = njit(error_model="numpy")(scalars.pair_estimate)
_pooled_moments = njit(scalars.pooled_moments)
_pearson = njit(error_model="numpy")(scalars.pearson)
_line = njit(error_model="numpy")(scalars.line)

# Sums may be added up in another order than the tokens', so that vector registers hold parts of
# them; nothing else is let go, NaN least of all.
_sums = njit(fastmath={"reassoc", "nsz"}, error_model="numpy")


def discretize(activations: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.discretize`."""
    bits, half = host_bits(np.ascontiguousarray(activations))
    result = np.empty(activations.shape, np.uint8)
    rows = (len(activations), math.prod(activations.shape[1:]))
    with threads_for(bits.size):
        _discretize(bits.reshape(rows), half, scale.astype(np.float64), result.reshape(rows))
    return result


@njit(parallel=True, cache=True, nogil=True)
def _discretize(activations, half, scale, result):
    """Discretise `[N, n]`, float or 16 bits, by float64 `[N]` into uint8 `[N, n]`."""
    for neuron in prange(len(activations)):
        for place in range(activations.shape[1]):
            x = np.float64(float_of(activations[neuron, place], half))
            result[neuron, place] = _discretize_one(x, scale[neuron])


def correlate(true: np.ndarray, simulated: np.ndarray) -> Agreement:
    """See `fastexplain.kernels.correlate`."""
    (xs, half_x), (ys, half_y) = (
        # Contiguous rows, for compiled code takes several tokens of them at a time.
        host_bits(np.ascontiguousarray(x[:, None] if x.ndim == 2 else x))
        for x in (true, simulated)
    )
    neurons = len(xs)
    result = Agreement(
        np.empty(neurons, np.int64), np.empty(neurons), np.empty(xs.shape[:2]),
        *(np.empty(neurons) for _ in range(4)),
    )  # fmt: skip
    with threads_for(xs.size):
        _correlate(xs, half_x, ys, half_y, *result)
    return result


@_sums
def _first_pass(xs, half_x, ys, half_y, first_x, first_y):
    """Of the tokens at which both are known: how many, the sums of x and y, whether either differs
    from what it is first, and the sums of (x - y)**2 and |x - y|.

    `xs` and `ys` are `[T]`, float or 16 bits, which are float16 if `half_x` or `half_y`; the first
    values are float64.
    """
    count, sum_x, sum_y, squares, distances = 0.0, 0.0, 0.0, 0.0, 0.0
    differ_x, differ_y = 0, 0
    for place in range(len(xs)):
        x = np.float64(float_of(xs[place], half_x))
        y = np.float64(float_of(ys[place], half_y))
        known = x == x and y == y
        distance = x - y if known else 0.0
        count += 1.0 if known else 0.0
        sum_x += x if known else 0.0
        sum_y += y if known else 0.0
        differ_x |= known and x != first_x
        differ_y |= known and y != first_y
        squares += distance * distance
        distances += abs(distance)
    return count, sum_x, sum_y, differ_x != 0, differ_y != 0, squares, distances


@_sums
def _second_pass(xs, half_x, ys, half_y, mean_x, mean_y):
    """Sums of (x - mean)**2, (x - mean)(y - mean) and (y - mean)**2 where both are known."""
    xx, xy, yy = 0.0, 0.0, 0.0
    for place in range(len(xs)):
        x = np.float64(float_of(xs[place], half_x)) - mean_x
        y = np.float64(float_of(ys[place], half_y)) - mean_y
        known = x == x and y == y
        x, y = x if known else 0.0, y if known else 0.0
        xx += x * x
        xy += x * y
        yy += y * y
    return xx, xy, yy


@_sums
def _deviation(xs, half_x, ys, half_y, mean_x):
    """Sum of |x - mean| where both are known."""
    total = 0.0
    for place in range(len(xs)):
        x = np.float64(float_of(xs[place], half_x)) - mean_x
        y = float_of(ys[place], half_y)
        x = x if x == x and y == y else 0.0
        total += abs(x)
    return total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _correlate(
    true, half_x, simulated, half_y,
    tokens, correlation, by_excerpt, r_squared, deviation_explained, intercept, slope,
):  # fmt: skip
    """Correlate, and write an `Agreement`'s arrays, which are the arguments from `tokens` on.

    `true` and `simulated` are `[N, E, T]`, float or 16 bits: float16 if `half_x` or `half_y`.
    """
    neurons, excerpts, length = true.shape
    for neuron in prange(neurons):
        total = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        varies_x, varies_y = False, False
        first_x, first_y = 0.0, 0.0  # of all excerpts
        squares, distances, deviation = 0.0, 0.0, 0.0
        for excerpt in range(excerpts):
            xs, ys = true[neuron, excerpt, :], simulated[neuron, excerpt, :]
            by_excerpt[neuron, excerpt] = np.nan
            x, y = np.nan, np.nan
            for place in range(length):
                x = np.float64(float_of(xs[place], half_x))
                y = np.float64(float_of(ys[place], half_y))
                if x == x and y == y:
                    break
            count, sum_x, sum_y, differ_x, differ_y, excerpt_squares, excerpt_distances = (
                _first_pass(xs, half_x, ys, half_y, x, y)
            )
            if count == 0:
                continue
            mean_x, mean_y = sum_x / count, sum_y / count
            moments = (count, mean_x, mean_y, *_second_pass(xs, half_x, ys, half_y, mean_x, mean_y))
            # Not by the variance: that of a constant can come out above 0 by rounding.
            if differ_x and differ_y:
                by_excerpt[neuron, excerpt] = _pearson(moments)
            if total[0] == 0:
                first_x, first_y = x, y
            varies_x |= differ_x or x != first_x
            varies_y |= differ_y or y != first_y
            total = _pooled_moments(total, moments)
            squares += excerpt_squares
            distances += excerpt_distances
        for excerpt in range(excerpts):
            deviation += _deviation(
                true[neuron, excerpt, :], half_x, simulated[neuron, excerpt, :], half_y, total[1]
            )
        tokens[neuron] = np.int64(total[0])
        correlation[neuron] = _pearson(total) if varies_x and varies_y else np.nan
        r_squared[neuron] = 1.0 - squares / total[3] if varies_x else np.nan
        deviation_explained[neuron] = 1.0 - distances / deviation if varies_x else np.nan
        intercept[neuron], slope[neuron] = _line(total, varies_x) if varies_y else (np.nan, np.nan)


def lookup(tables: LookupTables, excerpts: HeldOut, signed: bool = False) -> np.ndarray:
    """See `fastexplain.kernels.lookup`."""
    result = np.full(excerpts.activations.shape, np.nan, np.float32)
    with threads_for(result.size):
        _lookup(block_width_of(len(result)), signed, tables, excerpts, result)
    return result


@njit
def add_by_row(rows, ids, activations, skip, signed, sums, counts):
    """Add a neuron's activations up by table row.

    Args:
        rows: int32 `[excerpts, T]`, the table row of each token, -1 where it has none.
        ids, activations: int32 `[E]` and float32 `[E, T]`, the neuron's.
        skip: int, first counted token.
        signed: bool, whether all values count, or those above 0.
        sums, counts: float64, one for each table row, changed in place.
    """
    for place in range(len(ids)):
        if ids[place] < 0:
            continue
        for t in range(skip, rows.shape[1]):
            row = rows[ids[place], t]
            if row >= 0:
                sums[row] += _counted(activations[place, t], signed)
                counts[row] += 1


@njit(parallel=True, cache=True, nogil=True)
def _lookup(block_width, signed, tables, excerpts, result):
    """Predict every neuron's excerpts from tables that forget them.

    Args:
        block_width: int, neurons that a thread does.
        signed: bool, as for `fastexplain.kernels.lookup`.
        tables, excerpts: `LookupTables` and `HeldOut`.
        result: float32 `[F, E, T]` of NaN, written where tokens are counted.
    """
    neurons, places, tokens = result.shape
    token_counts, pair_counts = tables.token_counts, tables.pair_counts
    triple_counts, triple_rows = tables.triple_counts, excerpts.triple_rows
    token_rows, pair_rows, skip = excerpts.token_rows, excerpts.pair_rows, excerpts.skip
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        # Indexed by table row, so that a neuron's part is one addition a token; only the
        # entries that it touched are cleared for the next neuron.
        part_tokens, part_token_counts = np.zeros((2, len(token_counts)))
        part_pairs, part_pair_counts = np.zeros((2, len(pair_counts)))
        part_triples, part_triple_counts = np.zeros((2, len(triple_counts)))
        for neuron in range(block * block_width, min((block + 1) * block_width, neurons)):
            ids, acts = excerpts.ids[neuron], excerpts.activations[neuron]
            add_by_row(token_rows, ids, acts, skip, signed, part_tokens, part_token_counts)
            add_by_row(pair_rows, ids, acts, skip, signed, part_pairs, part_pair_counts)
            add_by_row(triple_rows, ids, acts, skip, signed, part_triples, part_triple_counts)
            part_sum, part_count = 0.0, 0
            for place in range(places):
                if ids[place] >= 0:
                    part_count += tokens - skip
                    for t in range(skip, tokens):
                        part_sum += _counted(acts[place, t], signed)
            rest = tables.count - part_count
            mean = _remaining(tables.positive_sums[neuron], part_sum, rest, signed) / max(rest, 1)
            for place in range(places):
                excerpt = ids[place]
                if excerpt < 0:
                    continue
                for t in range(skip, tokens):
                    token, pair = token_rows[excerpt, t], pair_rows[excerpt, t]
                    triple = triple_rows[excerpt, t]
                    estimate = mean
                    if token >= 0:
                        left = token_counts[token] - part_token_counts[token]
                        total = np.float64(tables.token_sums[token, neuron])
                        estimate = _token_estimate(
                            _remaining(total, part_tokens[token], left, signed), left, mean
                        )
                    if pair >= 0:
                        left = pair_counts[pair] - part_pair_counts[pair]
                        total = np.float64(tables.pair_sums[pair, neuron])
                        estimate = _pair_estimate(
                            _remaining(total, part_pairs[pair], left, signed), left, estimate
                        )
                    if triple >= 0:
                        left = triple_counts[triple] - part_triple_counts[triple]
                        total = np.float64(tables.triple_sums[triple, neuron])
                        estimate = _pair_estimate(
                            _remaining(total, part_triples[triple], left, signed), left, estimate
                        )
                    result[neuron, place, t] = estimate
            for place in range(places):
                if ids[place] >= 0:
                    for t in range(skip, tokens):
                        token = token_rows[ids[place], t]
                        pair = pair_rows[ids[place], t]
                        triple = triple_rows[ids[place], t]
                        if token >= 0:
                            part_tokens[token], part_token_counts[token] = 0.0, 0.0
                        if pair >= 0:
                            part_pairs[pair], part_pair_counts[pair] = 0.0, 0.0
                        if triple >= 0:
                            part_triples[triple], part_triple_counts[triple] = 0.0, 0.0
