"""The kernels for the CPU: Numba, parallel over neurons, vectorised along them."""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, njit, prange, types
from numba.extending import overload

from fastexplain.kernels import scalars
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import Batch, HeldOut, LookupTables, Summary, smallest_hashes

# Neurons that one thread folds at a time, at most. The wider, the longer the runs of memory that
# are read: at [64, 64, 1536] on 2 cores, capture with tables took 7.6 ms with 128, 5.1 with 384 and
# 4.4 with 768. Beyond, the float64 sums (40 bytes a neuron) outgrow the first-level cache.
_WIDEST_BLOCK = 768
_VECTOR = 16  # float32 in the widest vector register

_bin = njit(scalars.histogram_bin)
_precedes = njit(scalars.precedes)
_hash = njit(scalars.excerpt_hash)
_discretize_one = njit(scalars.discretize_one)
_remaining = njit(scalars.remaining)
_token_estimate = njit(scalars.token_estimate)
_pair_estimate = njit(scalars.pair_estimate)


def _block_width(neurons: int) -> int:
    """Neurons in a block, so that all threads have as much to do."""
    threads = get_num_threads()
    rounds = max(-(-neurons // (threads * _WIDEST_BLOCK)), 1)
    return max(-(-neurons // (threads * rounds * _VECTOR)), 1) * _VECTOR


def _host_bits(acts: np.ndarray) -> tuple[np.ndarray, bool]:
    """Arrays as Numba takes them, and whether 16 bits are float16, which it lacks on the CPU."""
    if acts.dtype == np.float16:
        return acts.view(np.uint16), True
    return acts, False


def _float_of(x, half):
    """One activation as float32; 16 bits are float16 where `half`, else bfloat16."""
    raise NotImplementedError("compiled code only")


@overload(_float_of)
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


def capture(acts: np.ndarray, batch: Batch, summary: Summary) -> None:
    """See `fastexplain.kernels.capture`."""
    tokens = summary.top_acts.shape[2]
    if acts.dtype != summary.top_acts.dtype:
        raise TypeError(f"activations are {acts.dtype}, the summary {summary.top_acts.dtype}")
    for position in np.flatnonzero(batch.random_slots >= 0):
        summary.random_acts[batch.random_slots[position]] = acts[position, -tokens:]
    bits, half = _host_bits(acts)
    block_width = _block_width(acts.shape[2])
    _capture(
        block_width,
        bits,
        half,
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
        summary.fault,
    )
    if len(batch.positions):
        _add_to_tables(
            block_width,
            bits,
            half,
            tokens,
            batch.positions,
            batch.run_starts,
            batch.run_tokens,
            batch.run_pairs,
            summary.token_sums,
            summary.pair_sums,
        )


@njit
def _insert(keys, ids, rows, neuron, key, excerpt, acts, position, lead):
    """Replace the worst exemplar, in slot 0, and bring the new worst there."""
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
    """Fold one token of a block of neurons into the block's sums."""
    for j in range(len(row)):
        x = _float_of(row[j], half)
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
        a, b = _float_of(row_a[j], half), _float_of(row_b[j], half)
        c, d = _float_of(row_c[j], half), _float_of(row_d[j], half)
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


@njit(parallel=True, cache=True, nogil=True)
def _capture(
    block_width,
    acts,
    half,
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
    fault,
):
    length, neurons = acts.shape[1], acts.shape[2]
    lead = length - top_acts.shape[2]
    blocks = (neurons + block_width - 1) // block_width
    faults = np.full(blocks, NO_ID, np.int32)
    for block in prange(blocks):
        start = block * block_width
        stop = min(start + block_width, neurons)
        width = stop - start
        powers, counts = np.zeros((5, width)), np.zeros(width, np.int32)
        largest, smallest = np.empty(width, np.float32), np.empty(width, np.float32)
        largest_bits = largest.view(np.int32)
        for position in range(len(excerpts)):
            excerpt = excerpts[position]
            largest[:] = -np.inf
            smallest[:] = np.inf
            t = lead + skip
            # A row is sliced from the whole array: Numba then knows that it is contiguous.
            while t + 4 <= length:
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
                t += 4
            while t < length:
                _fold_one(acts[position, t, start:stop], half, largest, smallest, powers, counts)
                t += 1
            # A NaN or an infinity among the activations, and nothing else, spoils their squares.
            if not np.isfinite(powers[1].sum()):
                faults[block] = excerpt
                break
            for j in range(width):
                neuron = start + j
                key, negated = largest[j], -smallest[j]
                if top_keys.shape[1] > 0 and _precedes(
                    key, excerpt, top_keys[neuron, 0], top_ids[neuron, 0]
                ):
                    _insert(top_keys, top_ids, top_acts, neuron, key, excerpt, acts, position, lead)
                if bottom_keys.shape[1] > 0 and _precedes(
                    negated, excerpt, bottom_keys[neuron, 0], bottom_ids[neuron, 0]
                ):
                    _insert(
                        bottom_keys, bottom_ids, bottom_acts,
                        neuron, negated, excerpt, acts, position, lead,
                    )  # fmt: skip
                maximum[neuron] = max(maximum[neuron], key)
                minimum[neuron] = min(minimum[neuron], smallest[j])
                place = _bin(largest_bits[j])
                histogram[neuron, place] += 1
                other = histogram_ids[neuron, place]
                if other == NO_ID or _hash(np.uint64(excerpt), seed) < _hash(
                    np.uint64(other), seed
                ):
                    histogram_ids[neuron, place] = excerpt
        sums[:, start:stop] += powers
        positive[start:stop] += counts
    fault[0] = min(fault[0], faults.min())


@njit(parallel=True, cache=True, nogil=True)
def _add_to_tables(
    block_width,
    acts,
    half,
    tokens,
    positions,
    run_starts,
    run_tokens,
    run_pairs,
    token_sums,
    pair_sums,
):
    length, neurons = acts.shape[1], acts.shape[2]
    lead = length - tokens
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        start = block * block_width
        width = min(block_width, neurons - start)
        run_sum = np.empty(width, np.float32)
        token_sum = np.zeros(width, np.float32)
        for run in range(len(run_tokens)):
            run_sum[:] = 0
            for place in range(run_starts[run], run_starts[run + 1]):
                position = positions[place]
                row = acts[position // tokens, lead + position % tokens, start : start + width]
                for j in range(width):
                    run_sum[j] += max(_float_of(row[j], half), np.float32(0))
            pair, token = run_pairs[run], run_tokens[run]
            if pair >= 0:
                for j in range(width):
                    pair_sums[pair, start + j] += run_sum[j]
            if token >= 0:
                for j in range(width):
                    token_sum[j] += run_sum[j]
                if run + 1 == len(run_tokens) or run_tokens[run + 1] != token:
                    for j in range(width):
                        token_sums[token, start + j] += token_sum[j]
                        token_sum[j] = 0


def merge(a: Summary, b: Summary) -> Summary:
    """See `fastexplain.kernels.merge`."""
    top = _best(a.top_keys, a.top_ids, a.top_acts, b.top_keys, b.top_ids, b.top_acts)
    bottom = _best(
        a.bottom_keys, a.bottom_ids, a.bottom_acts, b.bottom_keys, b.bottom_ids, b.bottom_acts
    )
    both = np.concatenate([a.random_ids, b.random_ids])
    random_ids = smallest_hashes(both, len(a.random_ids), a.seed)
    random_acts = np.zeros_like(a.random_acts)
    for slot, excerpt in enumerate(random_ids):
        if excerpt != NO_ID:
            source, place = divmod(int(np.argmax(both == excerpt)), len(a.random_ids))
            random_acts[slot] = (a, b)[source].random_acts[place]
    return Summary(
        *top,
        *bottom,
        random_ids=random_ids,
        random_acts=random_acts,
        sums=a.sums + b.sums,
        positive=a.positive + b.positive,
        minimum=np.minimum(a.minimum, b.minimum),
        maximum=np.maximum(a.maximum, b.maximum),
        histogram=a.histogram + b.histogram,
        histogram_ids=_smaller_hash(a.histogram_ids, b.histogram_ids, np.uint64(a.seed)),
        token_sums=a.token_sums + b.token_sums,
        pair_sums=a.pair_sums + b.pair_sums,
        fault=np.minimum(a.fault, b.fault),
        seed=a.seed,
    )


def _best(keys_a, ids_a, acts_a, keys_b, ids_b, acts_b):
    """The first K of two sets of K exemplars a neuron, in order."""
    keys, ids, acts = np.empty_like(keys_a), np.empty_like(ids_a), np.empty_like(acts_a)
    # Compiled code moves activations as bits, whatever they stand for.
    bits = np.dtype(f"u{acts.dtype.itemsize}")
    _merge_exemplars(
        np.concatenate([keys_a, keys_b], axis=1),
        np.concatenate([ids_a, ids_b], axis=1),
        acts_a.view(bits),
        acts_b.view(bits),
        keys,
        ids,
        acts.view(bits),
    )
    return keys, ids, acts


@njit(parallel=True, cache=True, nogil=True)
def _merge_exemplars(all_keys, all_ids, acts_a, acts_b, keys, ids, acts):
    neurons, slots = keys.shape
    for neuron in prange(neurons):
        own_keys, own_ids = all_keys[neuron], all_ids[neuron]
        taken = np.zeros(2 * slots, np.bool_)
        for slot in range(slots):
            best = -1
            for place in range(2 * slots):
                if not taken[place] and (
                    best < 0
                    or _precedes(own_keys[place], own_ids[place], own_keys[best], own_ids[best])
                ):
                    best = place
            taken[best] = True
            keys[neuron, slot], ids[neuron, slot] = own_keys[best], own_ids[best]
            if best < slots:
                acts[neuron, slot] = acts_a[neuron, best]
            else:
                acts[neuron, slot] = acts_b[neuron, best - slots]


@njit(parallel=True, cache=True, nogil=True)
def _smaller_hash(ids_a, ids_b, seed):
    """Of two ids in each place the one with the smaller hash; any id before an empty place."""
    result = ids_a.copy()
    for neuron in prange(len(result)):
        for place in range(result.shape[1]):
            a, b = ids_a[neuron, place], ids_b[neuron, place]
            if a == NO_ID or (b != NO_ID and _hash(np.uint64(b), seed) < _hash(np.uint64(a), seed)):
                result[neuron, place] = b
    return result


def discretize(activations: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.discretize`."""
    bits, half = _host_bits(np.ascontiguousarray(activations))
    result = np.empty(activations.shape, np.uint8)
    rows = (len(activations), math.prod(activations.shape[1:]))
    _discretize(bits.reshape(rows), half, scale.astype(np.float64), result.reshape(rows))
    return result


@njit(parallel=True, cache=True, nogil=True)
def _discretize(activations, half, scale, result):
    for neuron in prange(len(activations)):
        for place in range(activations.shape[1]):
            x = np.float64(_float_of(activations[neuron, place], half))
            result[neuron, place] = _discretize_one(x, scale[neuron])


def correlate(true: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.correlate`."""
    if true.shape != simulated.shape or true.ndim != 2:
        raise ValueError(f"expected two arrays [N, M], got {true.shape} and {simulated.shape}")
    return _correlate(true, simulated)


@njit(parallel=True, cache=True, nogil=True)
def _correlate(true, simulated):
    neurons, tokens = true.shape
    result = np.full(neurons, np.nan)
    for neuron in prange(neurons):
        xs, ys = true[neuron], simulated[neuron]
        count, sum_x, sum_y = 0, 0.0, 0.0
        low_x, high_x, low_y, high_y = np.inf, -np.inf, np.inf, -np.inf
        for place in range(tokens):
            x, y = np.float64(xs[place]), np.float64(ys[place])
            if not (np.isnan(x) or np.isnan(y)):
                count += 1
                sum_x += x
                sum_y += y
                low_x, high_x = min(low_x, x), max(high_x, x)
                low_y, high_y = min(low_y, y), max(high_y, y)
        # Not by the variance: that of a constant can come out above 0 by rounding.
        if count < 2 or not (low_x < high_x and low_y < high_y):
            continue
        mean_x, mean_y = sum_x / count, sum_y / count
        xx, xy, yy = 0.0, 0.0, 0.0
        for place in range(tokens):
            x, y = np.float64(xs[place]) - mean_x, np.float64(ys[place]) - mean_y
            if not (np.isnan(x) or np.isnan(y)):
                xx += x * x
                xy += x * y
                yy += y * y
        result[neuron] = xy / np.sqrt(xx) / np.sqrt(yy)
    return result


def lookup(tables: LookupTables, excerpts: HeldOut) -> np.ndarray:
    """See `fastexplain.kernels.lookup`."""
    result = np.full(excerpts.activations.shape, np.nan, np.float32)
    _lookup(
        _block_width(len(result)),
        tables.token_sums,
        tables.pair_sums,
        tables.token_counts,
        tables.pair_counts,
        tables.positive_sums,
        tables.count,
        excerpts.ids,
        excerpts.activations,
        excerpts.token_rows,
        excerpts.pair_rows,
        excerpts.skip,
        result,
    )
    return result


@njit
def _own_part(rows, ids, activations, skip, sums, counts):
    """Add a neuron's own activations up by table row."""
    for place in range(len(ids)):
        if ids[place] < 0:
            continue
        for t in range(skip, rows.shape[1]):
            row = rows[ids[place], t]
            if row >= 0:
                sums[row] += max(np.float64(activations[place, t]), 0.0)
                counts[row] += 1


@njit(parallel=True, cache=True, nogil=True)
def _lookup(
    block_width,
    token_sums,
    pair_sums,
    token_counts,
    pair_counts,
    positive_sums,
    total_count,
    ids,
    activations,
    token_rows,
    pair_rows,
    skip,
    result,
):
    neurons, places, tokens = activations.shape
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        # Indexed by table row, so that a neuron's own part is one addition a token; only the
        # entries that it touched are cleared for the next neuron.
        own_tokens, own_token_counts = np.zeros(len(token_counts)), np.zeros(len(token_counts))
        own_pairs, own_pair_counts = np.zeros(len(pair_counts)), np.zeros(len(pair_counts))
        for neuron in range(block * block_width, min((block + 1) * block_width, neurons)):
            own_ids, own_acts = ids[neuron], activations[neuron]
            _own_part(token_rows, own_ids, own_acts, skip, own_tokens, own_token_counts)
            _own_part(pair_rows, own_ids, own_acts, skip, own_pairs, own_pair_counts)
            own_sum, own_count = 0.0, 0
            for place in range(places):
                if own_ids[place] >= 0:
                    own_count += tokens - skip
                    for t in range(skip, tokens):
                        own_sum += max(np.float64(own_acts[place, t]), 0.0)
            rest = total_count - own_count
            mean = _remaining(positive_sums[neuron], own_sum, rest) / max(rest, 1)
            for place in range(places):
                excerpt = own_ids[place]
                if excerpt < 0:
                    continue
                for t in range(skip, tokens):
                    token, pair = token_rows[excerpt, t], pair_rows[excerpt, t]
                    estimate = mean
                    if token >= 0:
                        left = token_counts[token] - own_token_counts[token]
                        total = np.float64(token_sums[token, neuron])
                        estimate = _token_estimate(
                            _remaining(total, own_tokens[token], left), left, mean
                        )
                    if pair >= 0:
                        left = pair_counts[pair] - own_pair_counts[pair]
                        total = np.float64(pair_sums[pair, neuron])
                        estimate = _pair_estimate(
                            _remaining(total, own_pairs[pair], left), left, estimate
                        )
                    result[neuron, place, t] = estimate
            for place in range(places):
                if own_ids[place] >= 0:
                    for t in range(skip, tokens):
                        token = token_rows[own_ids[place], t]
                        pair = pair_rows[own_ids[place], t]
                        if token >= 0:
                            own_tokens[token], own_token_counts[token] = 0.0, 0.0
                        if pair >= 0:
                            own_pairs[pair], own_pair_counts[pair] = 0.0, 0.0
