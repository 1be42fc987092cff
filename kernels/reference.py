"""The kernels in NumPy, obvious and slow: the truth that the others are tested against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastexplain.kernels.scalars import (
    GELU_CUBE,
    NO_ID,
    counted,
    discretize_one,
    excerpt_hash,
    histogram_edges,
    pair_estimate,
    precedes,
    remaining,
    token_estimate,
)
from fastexplain.kernels.signs import CLASSES, Signs, classes_of
from fastexplain.kernels.summary import (
    Agreement,
    Batch,
    HeldOut,
    LookupTables,
    Preactivations,
    Summary,
    narrow,
    smallest_hashes,
    widen,
)


def capture(
    acts: np.ndarray, batch: Batch, summary: Summary, pre: Preactivations | None = None
) -> None:
    """See `fastexplain.kernels.capture`."""
    if pre is not None:
        acts[...] = activations(pre, acts.shape[2])
    tokens = summary.top_acts.shape[2]
    acts = acts[:, acts.shape[1] - tokens :]
    values = widen(acts)
    counted = values[:, batch.skip :]

    faulty = batch.ids[~np.isfinite(counted).all(axis=(1, 2))]
    summary.fault[0] = min([summary.fault[0], *faulty])
    if len(faulty):
        return

    largest, smallest = counted.max(axis=1), counted.min(axis=1)  # [B, F]
    for position, excerpt in enumerate(batch.ids):
        for neuron in range(acts.shape[2]):
            exemplar = acts[position, :, neuron]
            top = summary.top_keys, summary.top_ids, summary.top_acts
            _keep(top, neuron, (largest[position, neuron], excerpt, exemplar))
            bottom = summary.bottom_keys, summary.bottom_ids, summary.bottom_acts
            _keep(bottom, neuron, (-smallest[position, neuron], excerpt, exemplar))
            _count(summary, neuron, largest[position, neuron], excerpt)
        if batch.random_slots[position] >= 0:
            summary.random_acts[batch.random_slots[position]] = acts[position]

    exact = counted.astype(np.float64)
    positive = np.maximum(exact, 0)
    powers = [(exact**power).sum(axis=(0, 1)) for power in (1, 2, 3, 4)]
    summary.sums[...] += [*powers, positive.sum(axis=(0, 1))]
    summary.positive[...] += (exact > 0).sum(axis=(0, 1))
    np.maximum(summary.maximum, largest.max(axis=0), out=summary.maximum)
    np.minimum(summary.minimum, smallest.min(axis=0), out=summary.minimum)

    flat = np.maximum(values, 0).reshape(-1, values.shape[2])
    for segment, row in enumerate(batch.segment_rows):
        members = batch.positions[slice(*batch.segment_starts[segment : segment + 2])]
        if len(members):
            total = flat[members].sum(axis=0, dtype=np.float64).astype(np.float32)
            place = row
            for table in (summary.token_sums, summary.pair_sums, summary.triple_sums):
                if 0 <= place < len(table):
                    table[place] += total
                place -= len(table)


def capture_signs(acts: np.ndarray, batch: Batch, signs: Signs, pre: Preactivations) -> None:
    """See `fastexplain.kernels.capture_signs`."""
    neurons, _, _, tokens = signs.acts.shape
    assert pre.up is not None
    acts, up = acts[:, -tokens:], pre.up[:, -tokens:, pre.up_start : pre.up_start + neurons]
    values, ups = widen(acts), widen(up) > 0  # [B, T, F]
    packed = np.packbits(ups, axis=1, bitorder="little")
    classes = classes_of(values, ups)
    classes[:, : batch.skip] = len(CLASSES)  # none
    for place in range(len(CLASSES)):
        own = classes == place
        exact = np.where(own, values, 0).astype(np.float64)
        signs.tokens[place] += own.sum(axis=(0, 1))
        signs.sums[:, place] += [exact.sum(axis=(0, 1)), (exact**2).sum(axis=(0, 1))]
        kept = tuple(each[:, place] for each in (signs.keys, signs.ids, signs.acts, signs.ups))
        for (position, neuron), key in np.ndenumerate(np.abs(exact).max(axis=1)):
            if key > 0:
                whole = acts[position, :, neuron], packed[position, :, neuron]
                _keep(kept, neuron, (np.float32(key), batch.ids[position], *whole))


def activations(pre: Preactivations, neurons: int) -> np.ndarray:
    """f(gate) * up in float64, rounded once to the dtype of the gate, `[B, L, F]`."""

    def columns(array: np.ndarray, start: int) -> np.ndarray:
        return widen(array[..., start : start + neurons]).astype(np.float64)

    x = columns(pre.gate, pre.gate_start)
    with np.errstate(all="ignore"):
        values = {
            "gelu": lambda: 0.5 * x * _erfc(-x / math.sqrt(2)),
            "gelu_tanh": lambda: (
                x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + GELU_CUBE * x**3)))
            ),
            "silu": lambda: x / (1 + np.exp(-x)),
            "relu": lambda: np.maximum(x, 0),
            "relu2": lambda: np.maximum(x, 0) ** 2,
        }[pre.nonlinearity]()
        if pre.up is not None:
            values = values * columns(pre.up, pre.up_start)
        return narrow(values, pre.gate.dtype)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _keep(kept: tuple[np.ndarray, ...], neuron: int, new: tuple[Any, ...]) -> None:
    """Put an exemplar in its place among the K best of a neuron, if it is one of them.

    `kept` is keys and ids `[F, K]` and what else is kept of each, `[F, K, ...]`; `new` is the
    exemplar's key, id and the rest.
    """
    keys, ids, *_ = kept
    if keys.shape[1] == 0 or not precedes(*new[:2], keys[neuron, 0], ids[neuron, 0]):
        return
    for array, value in zip(kept, new, strict=True):
        array[neuron, 0] = value
    worst_first = np.lexsort((-ids[neuron].astype(np.int64), keys[neuron]))
    for array in kept:
        array[neuron] = array[neuron][worst_first]


def _count(summary: Summary, neuron: int, largest: float, excerpt: int) -> None:
    """Count an excerpt in the histogram; its bin keeps it if its hash is one of the smallest."""
    place = np.searchsorted(histogram_edges(), largest, side="right")
    summary.histogram[neuron, place] += 1
    kept = summary.histogram_ids[:, neuron, place]
    kept[:] = smallest_hashes(np.append(kept, np.int32(excerpt)), len(kept), summary.seed)


def merge(a: Summary, b: Summary) -> Summary:
    """See `fastexplain.kernels.merge`."""
    random_ids = smallest_hashes(
        np.concatenate([a.random_ids, b.random_ids]), len(a.random_ids), a.seed
    )
    random_acts = np.zeros_like(a.random_acts)
    for source in (a, b):
        for slot in np.flatnonzero(np.isin(source.random_ids, random_ids[random_ids != NO_ID])):
            place = np.flatnonzero(random_ids == source.random_ids[slot])
            random_acts[place] = source.random_acts[slot]

    both = np.concatenate([a.histogram_ids, b.histogram_ids])
    with np.errstate(over="ignore"):
        hashes = excerpt_hash(both.astype(np.uint64), np.uint64(a.seed))
    hashes[both == NO_ID] = np.iinfo(np.uint64).max
    order = hashes.argsort(axis=0, kind="stable")[: len(a.histogram_ids)]
    histogram_ids = np.take_along_axis(both, order, axis=0)

    return Summary(
        *_best(a.top_keys, a.top_ids, a.top_acts, b.top_keys, b.top_ids, b.top_acts),
        *_best(a.bottom_keys, a.bottom_ids, a.bottom_acts,
               b.bottom_keys, b.bottom_ids, b.bottom_acts),
        random_ids=random_ids,
        random_acts=random_acts,
        sums=a.sums + b.sums,
        positive=a.positive + b.positive,
        minimum=np.minimum(a.minimum, b.minimum),
        maximum=np.maximum(a.maximum, b.maximum),
        histogram=a.histogram + b.histogram,
        histogram_ids=histogram_ids,
        token_sums=a.token_sums + b.token_sums,
        pair_sums=a.pair_sums + b.pair_sums,
        triple_sums=a.triple_sums + b.triple_sums,
        fault=np.minimum(a.fault, b.fault),
        seed=a.seed,
    )  # fmt: skip


def _best(keys_a, ids_a, acts_a, keys_b, ids_b, acts_b) -> tuple[np.ndarray, ...]:
    """The first K of two sets of K exemplars a neuron, in order.

    Keys are float32 `[F, K]`, ids int32 `[F, K]`, activations `[F, K, T]`.
    """
    slots = keys_a.shape[1]
    keys = np.concatenate([keys_a, keys_b], axis=1)
    ids = np.concatenate([ids_a, ids_b], axis=1)
    acts = np.concatenate([acts_a, acts_b], axis=1)
    order = np.lexsort((ids, -keys), axis=1)[:, :slots]
    return (
        np.take_along_axis(keys, order, axis=1),
        np.take_along_axis(ids, order, axis=1),
        np.take_along_axis(acts, order[..., None], axis=1),
    )


def discretize(activations: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.discretize`."""
    values = widen(activations)
    result = np.zeros(values.shape, np.uint8)
    for place, x in np.ndenumerate(values):
        result[place] = discretize_one(float(x), float(scale[place[0]]))
    return result


def correlate(true: np.ndarray, simulated: np.ndarray) -> Agreement:
    """See `fastexplain.kernels.correlate`."""
    t, s = (x[:, None] if x.ndim == 2 else x for x in (_exact(true), _exact(simulated)))
    result = Agreement(
        np.zeros(len(t), np.int64),
        np.full(len(t), np.nan),
        np.full(t.shape[:2], np.nan),
        *(np.full(len(t), np.nan) for _ in range(4)),
    )
    for neuron in range(len(t)):
        known = ~(np.isnan(t[neuron]) | np.isnan(s[neuron]))
        x, y = t[neuron][known], s[neuron][known]
        result.tokens[neuron] = len(x)
        result.correlation[neuron] = _pearson(x, y)
        for excerpt, where in enumerate(known):
            result.by_excerpt[neuron, excerpt] = _pearson(
                t[neuron, excerpt, where], s[neuron, excerpt, where]
            )
        if _varies(x):
            spread = x - x.mean()
            result.r_squared[neuron] = 1 - ((x - y) ** 2).sum() / (spread**2).sum()
            result.deviation_explained[neuron] = 1 - abs(x - y).sum() / abs(spread).sum()
        if _varies(y):
            centred = y - y.mean()
            slope = (x - x.mean()) @ centred / (centred @ centred)
            result.slope[neuron] = slope
            result.intercept[neuron] = x.mean() - slope * y.mean()
    return result


def _exact(values: np.ndarray) -> np.ndarray:
    """Values of any supported dtype as float64, in the same shape."""
    return (widen(values) if values.dtype.itemsize == 2 else values).astype(np.float64)


def _varies(x: np.ndarray) -> bool:
    # Not by the variance: that of a constant can come out above 0 by rounding.
    return len(x) >= 2 and bool(x.min() < x.max())


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of two float64 `[n]`; NaN where it is undefined."""
    if not (_varies(x) and _varies(y)):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / math.sqrt(x @ x) / math.sqrt(y @ y)


def lookup(tables: LookupTables, excerpts: HeldOut, signed: bool = False) -> np.ndarray:
    """See `fastexplain.kernels.lookup`."""
    neurons, count, tokens = excerpts.activations.shape
    result = np.full((neurons, count, tokens), np.nan, np.float32)
    for neuron in range(neurons):
        seen = [
            (excerpts.token_rows[excerpt, t], excerpts.pair_rows[excerpt, t],
             excerpts.triple_rows[excerpt, t], place, t,
             counted(excerpts.activations[neuron, place, t], signed))
            for place, excerpt in enumerate(excerpts.ids[neuron]) if excerpt >= 0
            for t in range(excerpts.skip, tokens)
        ]  # fmt: skip
        rest = tables.count - len(seen)
        seen_sum = sum(value for *_, value in seen)
        mean = remaining(tables.positive_sums[neuron], seen_sum, rest, signed) / max(rest, 1)
        for token, pair, triple, place, t, _ in seen:
            estimate = mean
            if token >= 0:
                values = [other[-1] for other in seen if other[0] == token]
                left = tables.token_counts[token] - len(values)
                total = remaining(
                    float(tables.token_sums[token, neuron]), sum(values), left, signed
                )
                estimate = token_estimate(total, left, mean)
            if pair >= 0:
                values = [other[-1] for other in seen if other[1] == pair]
                left = tables.pair_counts[pair] - len(values)
                total = remaining(float(tables.pair_sums[pair, neuron]), sum(values), left, signed)
                estimate = pair_estimate(total, left, estimate)
            if triple >= 0:
                values = [other[-1] for other in seen if other[2] == triple]
                left = tables.triple_counts[triple] - len(values)
                total = remaining(
                    float(tables.triple_sums[triple, neuron]), sum(values), left, signed
                )
                estimate = pair_estimate(total, left, estimate)
            result[neuron, place, t] = estimate
    return result
