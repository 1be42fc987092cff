"""Short lists of table entries that predict a neuron, for all neurons of a layer at once.

It is none of the five kernels: it runs on the host, where a lookup explanation is written.

1. Per neuron the tables forget the excerpts that will score the list (as in `lookup`).
2. `choose` takes entries greedily: each time the one that adds most to what the list says so far.
   An entry applies where its token stands, a pair before its token; all else has the default.
3. `means_of` gives what the first n entries say: a mean for each, and one for everything else.
4. `read` predicts excerpts by that.

What an entry adds to the explained sum of squares over the corpus is gain**2 * count: gain is the
mean at its tokens, drawn by one token to what the list said of them before, less that. Only that
would be a list of weak and frequent tokens, where a reader, and a score over top excerpts, looks
for the strongest; so every sixth entry is the best by gain**2 * sqrt(count). Five of SmolLM2's
layers, lists of 8, over top and random excerpts and over random ones: every fourth 0.459 and 0.292,
every sixth 0.448 and 0.298, none 0.432 and 0.302; without the greedy part, 0.436 and 0.296.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from fastexplain.kernels import scalars
from fastexplain.kernels.checks import check_lookup
from fastexplain.kernels.cpu.neurons import add_by_row
from fastexplain.kernels.cpu.words import block_width_of
from fastexplain.kernels.summary import HeldOut, LookupTables, in_range

_remaining = njit(scalars.remaining)
_token_estimate = njit(error_model="numpy")(scalars.token_estimate)

_STRONG = 6
"""Every so many entries one is chosen for its strength, by the root of its count."""

SHORTLISTED = 4
"""Candidates for an entry, by each of the two orders, compared with the neuron's mean."""

_DRAWN = 1.0  # tokens by which a mean is drawn to what the list says already, before it is compared

_LEAST = 1e-4
"""An entry that adds less than this share of what the list explains is rounding, or beside it."""


class Lists(NamedTuple):
    """The entries of F neurons' lists, in the order in which they were chosen, n at most.

    Attributes:
        rows: int32 `[F, n]`, of the tables, pairs counted on from the V tokens; -1 for none.
        parents: int32 `[F, n]`, a pair's second token's row, -1 where it has none; of tokens -1.
        sums, counts: float64 and int64 `[F, n]`, what the tables have in these rows without the
            excerpts that were held out.
        around: float64 `[F, n]`, the estimate for a pair's second token alone; NaN for a token.
        total, tokens: float64 and int64 `[F]`, sum and count of all counted tokens, held out alike.
    """

    rows: Any
    parents: Any
    sums: Any
    counts: Any
    around: Any
    total: Any
    tokens: Any


def choose(tables: LookupTables, held_out: HeldOut, second: np.ndarray, *, count: int) -> Lists:
    """Choose for each neuron the entries that predict it, without the excerpts held out.

    Only entries at which a neuron is above what its list said before are taken. Lists are nested: a
    shorter one is the beginning of a longer one, but that `SHORTLISTED * count` candidates are
    looked at for each.

    Args:
        held_out: the excerpts that will score the lists.
        second: int32 `[P]`, the token row of each pair's second token, -1 where it has none.
        count: entries of a list, 0 or more.

    Raises:
        ValueError: shapes do not fit together, or an index points outside.
    """
    check_lookup(tables, held_out)
    if second.shape != tables.pair_counts.shape:
        raise ValueError(f"second is {list(second.shape)}; there are {len(tables.pair_sums)} pairs")
    in_range("second", second, -1, len(tables.token_sums))
    neurons = len(tables.positive_sums)
    shape = (neurons, count)
    found = Lists(
        np.full(shape, -1, np.int32), np.full(shape, -1, np.int32), np.zeros(shape),
        np.zeros(shape, np.int64), np.full(shape, np.nan), np.zeros(neurons),
        np.zeros(neurons, np.int64),
    )  # fmt: skip
    _choose(block_width_of(neurons), tables, held_out, second, *found)
    return found


def means_of(lists: Lists, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What the first `count` entries of each list say.

    A token's mean is over its tokens that no pair of the list has, a pair's over all of its own;
    drawn to the default and to the token's estimate as in `lookup`.

    Returns:
        Means, float64 `[F, count]`; and the default, float64 `[F]`: the mean of
        max(activation, 0) over the tokens that no entry has.
    """
    rows, parents, sums, counts, around = (each[:, :count] for each in lists[:5])
    pair = ~np.isnan(around)
    own_sums, own_counts = sums.copy(), counts.copy()
    rest, tokens = lists.total.copy(), lists.tokens.copy()
    for place in range(rows.shape[1]):
        one = slice(place, place + 1)
        # A pair's tokens are taken from its token's entry if the list has it, else from the rest.
        holds = pair[:, one] & ~pair & (rows == parents[:, one])
        own_sums -= np.where(holds, sums[:, one], 0)
        own_counts -= np.where(holds, counts[:, one], 0)
        outside = ~holds.any(axis=1)
        rest -= np.where(outside, sums[:, place], 0)
        tokens -= np.where(outside, counts[:, place], 0)
    default = np.maximum(rest, 0) / np.maximum(tokens, 1)
    means = np.where(
        pair,
        scalars.pair_estimate(sums, counts, around),
        scalars.token_estimate(np.maximum(own_sums, 0), own_counts, default[:, None]),
    )
    return np.where(rows >= 0, means, 0), default


def read(
    rows: np.ndarray,
    means: np.ndarray,
    default: np.ndarray,
    excerpts: HeldOut,
    table_tokens: int,
) -> np.ndarray:
    """Predict excerpts by lists: a pair's mean where it stands, else a token's, else the default.

    Args:
        rows: int32 `[F, n]`, as in `Lists`.
        means, default: float64 `[F, n]` and `[F]`.
        excerpts: which to predict; their true activations give the shape alone.
        table_tokens: V, from which on rows are pairs'.

    Returns:
        float32 `[F, E, T]`, NaN at tokens that are not counted and in missing excerpts.
    """
    result = np.full(excerpts.activations.shape, np.nan, np.float32)
    _read(block_width_of(len(result)), rows, means, default, excerpts, table_tokens, result)
    return result


@njit(parallel=True, cache=True, nogil=True)
def _read(block_width, rows, means, default, excerpts, table_tokens, result):
    """Write `result`, float32 `[F, E, T]` of NaN; the other arguments are those of `read`."""
    neurons, places, tokens = result.shape
    token_rows, pair_rows, skip = excerpts.token_rows, excerpts.pair_rows, excerpts.skip
    size = max(table_tokens, rows.max() + 1 if rows.size else 0)
    for block in prange((neurons + block_width - 1) // block_width):
        value = np.full(size, np.nan)  # by table row, of the entries of one neuron
        for neuron in range(block * block_width, min((block + 1) * block_width, neurons)):
            for entry in range(rows.shape[1]):
                if rows[neuron, entry] >= 0:
                    value[rows[neuron, entry]] = means[neuron, entry]
            for place in range(places):
                excerpt = excerpts.ids[neuron, place]
                if excerpt < 0:
                    continue
                for t in range(skip, tokens):
                    token, pair = token_rows[excerpt, t], pair_rows[excerpt, t] + table_tokens
                    found = np.nan
                    if table_tokens <= pair < size:
                        found = value[pair]
                    if np.isnan(found) and token >= 0:
                        found = value[token]
                    result[neuron, place, t] = default[neuron] if np.isnan(found) else found
            for entry in range(rows.shape[1]):
                if rows[neuron, entry] >= 0:
                    value[rows[neuron, entry]] = np.nan


@njit
def _shortlist(worth, rows, kept):
    """The rows with the largest worth above -inf, best first, equal ones by lower row.

    `worth` is float64 `[V + P]`; int32 and float64 `rows` and `kept`, as long as there shall be
    rows, are written. Returns how many were found.
    """
    found, last, limit = 0, len(rows) - 1, -np.inf
    for row in range(len(worth) if len(rows) else 0):
        value = worth[row]
        if value <= limit:
            continue
        place = min(found, last)
        while place > 0 and kept[place - 1] < value:
            rows[place], kept[place] = rows[place - 1], kept[place - 1]
            place -= 1
        rows[place], kept[place] = row, value
        if found <= last:
            found += 1
        if found > last:
            limit = kept[last]
    return found


@njit(error_model="numpy")
def _greedy(candidates, own_sums, own_counts, parents, total, tokens, chosen):
    """Choose candidates one after another; `chosen`, int `[n]` of -1, gets their places.

    Args:
        candidates: int32 `[c]`, table rows, ascending.
        own_sums, own_counts: float64 and int64 `[c]`, of these rows; what a list has of a token is
            written there.
        parents: int `[c]`, of pairs the place of the token; -1 for tokens, and where it is none.
        total, tokens: float and int, of all that no entry has.
    """
    listed = np.zeros(len(candidates), np.bool_)
    explained = 0.0
    for entry in range(len(chosen)):
        default = total / max(tokens, 1)
        best, found, added = 0.0, -1, 0.0
        for c in range(len(candidates)):
            if listed[c] or own_counts[c] <= 0:
                continue
            before, parent = default, parents[c]
            if parent >= 0 and listed[parent]:
                before = own_sums[parent] / max(own_counts[parent], 1)
            number = np.float64(own_counts[c])
            gain = (own_sums[c] - number * before) / (number + _DRAWN)
            if gain > 0.0 and gain * gain * number > _LEAST * explained:
                weight = np.sqrt(number) if entry % _STRONG == _STRONG - 1 else number
                worth = gain * gain * weight
                if worth > best:
                    best, found, added = worth, c, gain * gain * number
        if found < 0:
            break
        chosen[entry], listed[found] = found, True
        explained += added
        parent = parents[found]
        if parent >= 0:
            own_sums[parent] -= own_sums[found]
            own_counts[parent] -= own_counts[found]
        if parent < 0 or not listed[parent]:
            total -= own_sums[found]
            tokens -= own_counts[found]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _choose(
    block_width, tables, held_out, second,
    list_rows, list_parents, list_sums, list_counts, list_around, list_total, list_tokens,
):  # fmt: skip
    """Fill the arrays of `Lists`, from `list_rows` on; the other arguments are those of `choose`.

    (Writing to arrays within a tuple is lost in a parallel loop of Numba 0.68.)
    """
    neurons, count = list_rows.shape
    known_tokens, known_pairs = len(tables.token_counts), len(tables.pair_counts)
    size, length = known_tokens + known_pairs, held_out.activations.shape[2]
    most = SHORTLISTED * count
    for block in prange((neurons + block_width - 1) // block_width):
        start, stop = block * block_width, min((block + 1) * block_width, neurons)
        # A neuron's column of the tables as a row: read for several neurons at once, as they lie.
        columns = np.empty((stop - start, size), np.float32)
        for row in range(known_tokens):
            for j in range(stop - start):
                columns[j, row] = tables.token_sums[row, start + j]
        for row in range(known_pairs):
            for j in range(stop - start):
                columns[j, known_tokens + row] = tables.pair_sums[row, start + j]
        sums, left = np.empty(size), np.empty(size, np.int64)
        by_sum, by_root = np.empty(size), np.empty(size)
        rows, kept = np.empty(most, np.int32), np.empty(most)
        place_of = np.full(size, -1, np.int64)
        for neuron in range(start, stop):
            ids, acts = held_out.ids[neuron], held_out.activations[neuron]
            part, part_counts = np.zeros(size), np.zeros(size)
            for which, first in ((held_out.token_rows, 0), (held_out.pair_rows, known_tokens)):
                add_by_row(
                    which, ids, acts, held_out.skip, False, part[first:], part_counts[first:]
                )
            gone_sum, gone = 0.0, 0
            for place in range(len(ids)):
                if ids[place] >= 0:
                    gone += length - held_out.skip
                    for t in range(held_out.skip, length):
                        gone_sum += max(np.float64(acts[place, t]), 0.0)
            tokens = tables.count - gone
            total = _remaining(tables.positive_sums[neuron], gone_sum, tokens)
            mean = total / max(tokens, 1)
            for row in range(size):
                is_token = row < known_tokens
                n = tables.token_counts[row] if is_token else tables.pair_counts[row - known_tokens]
                left[row] = n - np.int64(part_counts[row])
                sums[row] = _remaining(
                    np.float64(columns[neuron - start, row]), part[row], left[row]
                )
                number = np.float64(left[row])
                gain = (sums[row] - number * mean) / (number + _DRAWN)
                # What is below the mean may be above what the list leaves: such rows come last.
                worth = gain * abs(gain) * np.sqrt(number)
                by_root[row] = worth if left[row] > 0 else -np.inf
                by_sum[row] = worth * np.sqrt(number) if left[row] > 0 else -np.inf
            # Pairs of a token that gets listed are compared with it later; before, with the mean.
            union = np.empty(2 * most, np.int32)
            found = 0
            for worth in (by_sum, by_root):
                for k in range(_shortlist(worth, rows, kept)):
                    if place_of[rows[k]] < 0:
                        place_of[rows[k]] = 0
                        union[found] = rows[k]
                        found += 1
            candidates = np.sort(union[:found])
            parents = np.full(found, -1, np.int64)
            for c in range(found):
                place_of[candidates[c]] = c
            for c in range(found):
                if candidates[c] >= known_tokens and second[candidates[c] - known_tokens] >= 0:
                    parents[c] = place_of[second[candidates[c] - known_tokens]]
            chosen = np.full(count, -1, np.int64)
            _greedy(candidates, sums[candidates], left[candidates], parents, total, tokens, chosen)
            for entry in range(count):
                if chosen[entry] < 0:
                    continue
                row = candidates[chosen[entry]]
                list_rows[neuron, entry] = row
                list_sums[neuron, entry], list_counts[neuron, entry] = sums[row], left[row]
                if row >= known_tokens:
                    token = second[row - known_tokens]
                    list_parents[neuron, entry] = token
                    around = mean
                    if token >= 0:
                        around = _token_estimate(sums[token], left[token], mean)
                    list_around[neuron, entry] = around
            list_total[neuron], list_tokens[neuron] = total, tokens
            for c in range(found):
                place_of[candidates[c]] = -1
