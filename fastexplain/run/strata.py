"""Excerpts of the whole corpus for a neuron, drawn by stratum from what its histogram kept.

1. The population is the corpus without the excerpts that explanations are written from, so that
   none of these scores one.
2. The histogram's bins, by the largest activation of an excerpt, are pooled into strata. A bin's
   share is half by its excerpts and half by its excerpts times their largest activation: by the
   first alone the few excerpts that activate a neuron would be one stratum, by the second the many
   that do not. A bin with more than a stratum's part is one; the others are cut into equal parts,
   in order.
3. From each stratum come the excerpts with the smallest seeded hashes, a simple random sample. They
   are known: what a bin kept are the smallest of the bin, and the run's random excerpts are the
   smallest of all, so where a bin has most of the corpus more than it kept are known.

Allocation by excerpts times size: Cochran 1977, "Sampling Techniques", sections 5.5 and 5A.7.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastexplain.errors import RunError
from fastexplain.kernels.scalars import excerpt_hash, histogram_edges
from fastexplain.kernels.summary import widen
from fastexplain.run.directory import Run
from fastexplain.run.splits import EXPLANATION_RANKS

STRATA = 7
EXCERPTS = 15
"""Wanted of a neuron, shared out evenly to its strata. Seven strata of two did better than five of
three or four of four (`benches/NOTES.md`)."""
_LEAST = 2
"""Fewest excerpts of a stratum; one alone tells no error."""

_EMPTY = -1


class Drawn(NamedTuple):
    """Excerpts drawn for N neurons, E places each.

    Attributes:
        ids: int32 `[N, E]`; -1 in places that are not used, the last ones of a row.
        strata: int64 `[N, E]`, the stratum of each, from the lowest activations up.
        sizes: int64 `[N, S]`, excerpts of the corpus in each stratum; 0 where there is none.
    """

    ids: np.ndarray
    strata: np.ndarray
    sizes: np.ndarray


def drawn(run: Run, site: int | str, indices: np.ndarray) -> Drawn:
    """Draw for some neurons of a site, by their numbers, int `[N]`.

    Raises:
        RunError: a file is missing or damaged, or the run's bins keep too few excerpts.
    """
    span = slice(int(indices.min()), int(indices.max()) + 1)

    def own(name: str) -> np.ndarray:
        return run.array(site, name, span)[indices - span.start]

    kept, seed = own("histogram.excerpts"), run.manifest.get("corpus", {}).get("seed")
    if kept.shape[2] < _LEAST or not isinstance(seed, int):
        raise RunError(
            f"{run.path} is of an earlier version, of which a histogram's bin keeps too few "
            "excerpts for a score over the corpus; sweep again"
        )
    top_ids, random_ids = own("top.ids"), run.array(site, "random.ids")
    ranks = EXPLANATION_RANKS[top_ids.shape[1] > EXPLANATION_RANKS]
    largest = widen(own("top.activations")[:, ranks, run.skip :]).max(axis=2)
    random_largest = np.zeros((len(indices), 0), np.float32)
    if len(random_ids):
        random_acts = widen(run.array(site, "random.activations", span))[:, run.skip :]
        random_largest = random_acts.max(axis=1)[:, indices - span.start].T
    return draw(
        own("histogram"), kept, random_ids, random_largest, top_ids[:, ranks], largest, seed
    )


def draw(
    histogram: np.ndarray,
    kept: np.ndarray,
    random: np.ndarray,
    random_largest: np.ndarray,
    explained: np.ndarray,
    largest: np.ndarray,
    seed: int,
) -> Drawn:
    """Draw excerpts by stratum.

    Args:
        histogram: int `[N, H]`, excerpts by bin.
        kept: int32 `[N, H, D]`, those of each bin with the smallest hashes; -1 for none.
        random: int32 `[R]`, those of the corpus with the smallest hashes, in that order.
        random_largest: float32 `[N, R]`, their largest counted activations.
        explained: int32 `[N, X]`, the excerpts that explanations are written from; -1 for none.
        largest: float32 `[N, X]`, their largest counted activations, by which they have bins.
        seed: of the hash.
    """
    neurons, bins, depth = kept.shape
    edges = histogram_edges()
    of_explained = np.searchsorted(edges, largest, side="right")
    of_random = np.searchsorted(edges, random_largest, side="right")
    rows = np.arange(neurons)[:, None]
    left = histogram.astype(np.int64)
    np.subtract.at(left, (np.broadcast_to(rows, explained.shape), of_explained), explained >= 0)

    # All excerpts that are known, each with its bin: those kept, then the random ones among others.
    of_kept = np.broadcast_to(np.repeat(np.arange(bins), depth), (neurons, bins * depth))
    again = (kept[rows, of_random] == random[:, None]).any(axis=2) | (random < 0)
    ids = np.concatenate([kept.reshape(neurons, -1), np.where(again, _EMPTY, random)], axis=1)
    of = np.concatenate([of_kept, of_random], axis=1)
    usable = (ids >= 0) & ~(ids[..., None] == explained[:, None, :]).any(axis=2)
    hashes = _hashes(ids, seed)
    # Below it all hashes of a bin are known.
    horizon = np.maximum(_hashes(kept[:, :, -1], seed), _hashes(random[-1:], seed).max(initial=0))
    horizon[histogram <= depth] = np.iinfo(np.uint64).max

    strata = _pooled(left)
    while True:
        sizes = _added(left, strata)
        least = np.full(sizes.shape, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, (rows, strata), horizon)
        own = np.take_along_axis(strata, of, axis=1)
        sure = usable & (hashes <= np.take_along_axis(least, own, axis=1))
        known = _added(sure, own, sizes.shape[1])
        lacking = (known < np.minimum(sizes, _LEAST)) & (sizes < left.sum(1, keepdims=True))
        if not lacking.any():
            break
        strata = _joined(strata, lacking)

    each = np.maximum(EXCERPTS // np.maximum((sizes > 0).sum(axis=1, keepdims=True), 1), _LEAST)
    most = np.minimum(known, each)
    count = most.shape[1]
    flat = np.where(usable, own, count)
    order = np.lexsort((hashes, flat), axis=1)
    flat = np.take_along_axis(flat, order, axis=1)
    first = (flat[:, None, :] < np.arange(count)[:, None]).sum(axis=2)
    # Places among the excerpts of the same stratum, by hash.
    inside = np.minimum(flat, count - 1)
    place = np.arange(flat.shape[1]) - np.take_along_axis(first, inside, axis=1)
    taken = (flat < count) & (place < np.take_along_axis(most, inside, axis=1))
    chosen = np.argsort(~taken, axis=1, kind="stable")[:, : int(taken.sum(axis=1).max(initial=0))]
    used = np.take_along_axis(taken, chosen, axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    return Drawn(
        np.where(used, np.take_along_axis(ids, chosen, axis=1), np.int32(_EMPTY)),
        np.where(used, np.take_along_axis(flat, chosen, axis=1), _EMPTY),
        sizes,
    )


def _pooled(left: np.ndarray) -> np.ndarray:
    """The stratum of each bin, from 0 up along the bins; int64 `[N, H]`, as `left`."""
    edges = histogram_edges().astype(np.float64)
    middles = np.concatenate([[0.0], np.sqrt(edges[:-1] * edges[1:]), edges[-1:]])
    shares = np.zeros(left.shape)
    for size in (left, left * middles):
        total = size.sum(axis=1, keepdims=True)
        shares += np.divide(size, total, out=np.zeros_like(shares), where=total > 0)
    alone = np.zeros(left.shape, bool)
    for _ in range(STRATA):
        rest = np.where(alone, 0, shares)
        parts = STRATA - alone.sum(axis=1, keepdims=True)
        alone |= (rest * parts > rest.sum(axis=1, keepdims=True)) & (left > 0) & (parts > 1)
    rest = np.where(alone, 0, shares)
    parts = np.maximum(STRATA - alone.sum(axis=1, keepdims=True), 1)
    total = rest.sum(axis=1, keepdims=True)
    middle = (np.cumsum(rest, axis=1) - rest / 2) * parts
    part = np.floor(np.divide(middle, total, out=np.zeros_like(middle), where=total > 0))
    # A bin that is alone, and what lies beyond it, begin a stratum, and so does a new part.
    before = np.cumsum(2 * alone, axis=1) - alone
    label = before * (STRATA + 1) + np.where(alone, 0, part.astype(np.int64))
    filled = left > 0
    last = np.maximum.accumulate(np.where(filled, np.arange(left.shape[1]), -1), axis=1)
    previous = np.concatenate([np.full((len(left), 1), -1), last[:, :-1]], axis=1)
    rows = np.arange(len(left))[:, None]
    begins = filled & ((previous < 0) | (label != label[rows, previous]))
    return np.maximum(np.cumsum(begins, axis=1) - 1, 0)


def _hashes(ids: np.ndarray, seed: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return excerpt_hash(ids.astype(np.uint64), np.uint64(seed))


def _added(values: np.ndarray, strata: np.ndarray, count: int | None = None) -> np.ndarray:
    """Sums of values `[N, n]` by their strata, int64 `[N, S]`."""
    count = int(strata.max(initial=0)) + 1 if count is None else count
    return np.stack([np.where(strata == each, values, 0).sum(axis=1) for each in range(count)], 1)


def _joined(strata: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """Strata with the highest lacking one of each neuron joined to the one below it.

    The lowest one is joined to the one above it.
    """
    count = lacking.shape[1]
    highest = count - 1 - lacking[:, ::-1].argmax(axis=1)
    at = np.where(lacking.any(axis=1), np.maximum(highest, 1), count)
    return strata - (strata >= at[:, None])
