"""What an explanation's score is worth: how well much simpler predictions do on the same excerpts.

All are of the neuron's test excerpts, for all neurons of a layer at once, without a language model:

- `lookup`: the tables' triples, pairs and tokens, as the lookup explanation is scored.
- `token`: the tables' tokens alone.
- `position`: the mean of max(activation, 0) by position in the excerpt, over those of the run's
  random excerpts that the neuron is not tested on.
- `mismatched`: the tables of another neuron of the layer. That neuron's activations on these
  excerpts are not kept, so that its tables are taken whole; what is left in them is its own
  answer, not this neuron's.
- `unrepeated`: as `lookup`, scored without tokens of repeated text (`text/repeats.py`): there a
  table may know the answer from a copy.

Sources: the lookup table and the random baseline of Bills et al. 2023, "Assessing explanation
quality". The errors over excerpts are the delete-one jackknife's (Efron and Stein 1981).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import fastexplain.kernels as kernels
from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.explainers.regression import predict
from fastexplain.kernels.summary import HeldOut, LookupTables, widen
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run
from fastexplain.run.splits import RANDOM_EXCERPTS
from fastexplain.text.repeats import repeated

SPLITS = ("random_only", "top_and_random", "top_only")

NAMES = ("lookup", "token", "position", "mismatched", "unrepeated")
"""In the order in which they are shown; without tables there is `position` alone."""

_SEED = 0  # of the choice of the other neuron


class Baseline(NamedTuple):
    """One baseline's correlations, for N neurons; NaN where one is undefined.

    Attributes:
        values: float64 `[3, N]`, over the excerpts of `SPLITS`.
        without: float64 `[3, R, N]`, the same with each of the run's R random excerpts left out.
        halves: float64 `[3, 2, N]`, over each half of the excerpts: every other top one and the
            other ones of the random ones.
        used: bool `[R]`, whether a neuron is scored on that random excerpt.
    """

    values: np.ndarray
    without: np.ndarray
    halves: np.ndarray
    used: np.ndarray


def layer_baselines(
    run: Run, layers: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Baseline]]]:
    """The baselines of all neurons, layer by layer; stores nothing.

    Args:
        layers: which of the run's; all if left out.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    has_tables = len(run.tables.tokens) > 0
    rows = run.tables.rows(run.excerpts) if has_tables else None
    marked = repeated(run.excerpts) if has_tables else None
    for layer in run.layers if layers is None else layers:
        tables = layer_tables(run, layer) if has_tables else None
        others = other_neurons(run.width(layer), layer)
        yield layer, _of_layer(run, layer, slice(None), rows, tables, tables, others, marked)


def neuron_baselines(run: Run, neuron: NeuronId) -> dict[str, Baseline]:
    """One neuron's baselines, all but `unrepeated`, which takes a look at the whole corpus.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    one = slice(neuron.index, neuron.index + 1)
    tables, others = None, None
    if len(run.tables.tokens):
        tables = layer_tables(run, neuron.layer, one)
        other = int(other_neurons(run.width(neuron.layer), neuron.layer)[neuron.index])
        others = layer_tables(run, neuron.layer, slice(other, other + 1))
    return _of_layer(run, neuron.layer, one, None, tables, others, np.zeros(1, np.int64), None)


def other_neurons(neurons: int, layer: int) -> np.ndarray:
    """For each neuron of a layer another one, int64 `[neurons]`; itself where it is alone."""
    order = np.random.default_rng([_SEED, layer]).permutation(neurons)
    others = np.empty(neurons, np.int64)
    others[order] = np.roll(order, 1)
    return others


def _of_layer(
    run: Run,
    layer: int,
    neurons: slice,
    rows: tuple[np.ndarray, ...] | None,
    tables: LookupTables | None,
    others: LookupTables | None,
    columns: np.ndarray,
    marked: np.ndarray | None,
) -> dict[str, Baseline]:
    """The baselines of some neurons of a layer.

    Args:
        rows: the tables' rows of all excerpts' tokens; None for one neuron, whose few are found.
        tables: these neurons'; None, as `others`, without any.
        others, columns: for each of them the tables, and the column in these, of another neuron.
        marked: bool `[excerpts, tokens]`, tokens in repeated text; None to leave that out.
    """
    ids, activations, top = split_excerpts(run, layer, neurons)
    tops = int(top[0].sum())
    true = np.maximum(activations, 0)
    true[ids < 0] = np.nan
    true[..., : run.skip] = np.nan
    random_ids = run.array(layer, "random.ids")
    random_acts = widen(run.array(layer, "random.activations", neurons))

    def measured(predicted: np.ndarray) -> Baseline:
        return baseline_of(true, predicted, ids, tops, random_ids)

    found = {"position": measured(_by_position(ids, random_ids, random_acts, true.shape))}
    if tables is not None and others is not None:
        places, known = ids, None
        if rows is None:
            known = np.maximum(ids[0], 0)
            rows = run.tables.rows(run.excerpts_of(known))
            places = np.where(ids >= 0, np.arange(ids.shape[1], dtype=np.int32), np.int32(-1))
        held = HeldOut(places, activations, *rows, run.skip)
        by_pair = predict(run, layer, tables, held, neurons=neurons, ids=known)
        none = np.full_like(rows[0], -1)
        by_token = kernels.lookup(
            tables, HeldOut(places, activations, rows[0], none, none, run.skip)
        )
        found |= {"lookup": measured(by_pair), "token": measured(by_token)}
        if run.width(layer) > 1:
            found["mismatched"] = measured(_whole(others, columns, *(own[places] for own in rows)))
        if marked is not None:
            found["unrepeated"] = measured(np.where(marked[ids], np.nan, by_pair))
    return {name: found[name] for name in NAMES if name in found}


def _by_position(
    ids: np.ndarray, random_ids: np.ndarray, random_acts: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Means by position over the random excerpts `[R, T, N]` that are not among a neuron's `ids`.

    Returns:
        float64 `[N, E, T]`, as `shape` says; NaN for a neuron without such an excerpt.
    """
    kept = (random_ids >= 0) & (ids[:, None, :] != random_ids[None, :, None]).all(axis=2)
    totals = np.einsum("nr,rtn->nt", kept.astype(np.float64), np.maximum(random_acts, 0))
    counts = kept.sum(axis=1, dtype=np.float64)[:, None]
    means = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return np.broadcast_to(means[:, None, :], shape)


def _whole(tables: LookupTables, columns: np.ndarray, *rows: np.ndarray) -> np.ndarray:
    """What whole tables predict, nothing held out: float64 `[N, E, T]`.

    The formulas are those of `fastexplain.kernels.lookup`.

    Args:
        columns: int `[N]`, the tables' neuron for each row.
        rows: of tokens, pairs and triples, int32 `[N, E, T]`, -1 where a token has none.
    """
    own = columns[:, None, None]
    estimate = (tables.positive_sums[columns] / max(tables.count, 1))[:, None, None]
    sums = (tables.token_sums, tables.pair_sums, tables.triple_sums)
    counts = (tables.token_counts, tables.pair_counts, tables.triple_counts)
    for known, table, behind, weight in zip(rows, sums, counts, (0.5, 2.0, 2.0), strict=True):
        if len(behind):
            total = np.where(known >= 0, table[known, own], 0).astype(np.float64)
            count = np.where(known >= 0, behind[known], 0)
            estimate = (total + weight * estimate) / (count + weight)
    return np.broadcast_to(estimate, rows[0].shape)


def baseline_of(
    true: np.ndarray, predicted: np.ndarray, ids: np.ndarray, tops: int, random_ids: np.ndarray
) -> Baseline:
    """Correlate predictions with the truth over the splits, their halves, and without each excerpt.

    All follow from the sums over each excerpt, so that the tokens are read once; what varies by
    less than a millionth of the neuron's largest deviation is lost in rounding.

    Args:
        true, predicted: float `[N, E, T]`; tokens at which either is NaN are left out.
        ids: int `[N, E]`, the excerpts' ids.
        tops: so many of the E excerpts are top ones; they come first.
        random_ids: int `[R]`, the run's random excerpts.
    """
    parts = _sums(true, predicted)
    places = np.arange(ids.shape[1])[:, None]
    random = places >= tops
    # Of the random ones as many as the headline takes, as `run.agreement` has it.
    paired = np.cumsum((parts[0][0] > 0) & random, axis=0) <= RANDOM_EXCERPTS
    splits = [random, ~random | paired, ~random]
    odd = np.where(random, places - tops + 1, places) % 2 == 1
    left = [(each != ids.T) | ~random for each in random_ids]
    used = np.array([not own.all() for own in left], dtype=bool)
    values = np.stack([_pooled(parts, split) for split in splits])
    without = np.repeat(values[:, None], len(left), axis=1)
    for place in np.flatnonzero(used):
        without[:2, place] = [_pooled(parts, split & left[place]) for split in splits[:2]]
    halves = [[_pooled(parts, split & half) for half in (~odd, odd)] for split in splits]
    return Baseline(values, without, np.array(halves), used)


def _sums(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each excerpt's part in the correlation of any set of them.

    Returns:
        Count, and sums of x, y, x**2, xy and y**2 about the neuron's means: float64 `[6, E, N]`.
        The largest x, -x, y and -y, -inf in an excerpt without tokens: `[4, E, N]`.
    """
    known = ~(np.isnan(true) | np.isnan(predicted))
    count = known.sum(axis=(1, 2), dtype=np.float64)

    def centred(values: np.ndarray) -> np.ndarray:
        values = np.where(known, values, 0).astype(np.float64)
        mean = values.sum(axis=(1, 2)) / np.maximum(count, 1)
        return np.where(known, values - mean[:, None, None], 0)

    x, y = centred(true), centred(predicted)
    products = [np.einsum("net,net->ne", a, b) for a, b in ((x, x), (x, y), (y, y))]
    sums: Any = [known.sum(axis=2), *(np.einsum("net->ne", own) for own in (x, y)), *products]
    largest: Any = [np.where(known, own, -np.inf).max(axis=2) for own in (x, -x, y, -y)]
    # Neurons last: sums over a few excerpts are then made for many neurons at a time.
    sums, largest = (np.ascontiguousarray(np.swapaxes(own, 1, 2)) for own in (sums, largest))
    return sums, largest


def _pooled(parts: tuple[np.ndarray, np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Pearson's correlation over some excerpts' tokens pooled together, float64 `[N]`.

    Args:
        parts: from `_sums`.
        chosen: bool `[E, N]`, or `[E, 1]` for the same excerpts of all neurons.
    """
    sums, largest = parts
    count, x, y, xx, xy, yy = np.where(chosen, sums, 0).sum(axis=1)
    # Not by the variance: that of a constant can come out above 0 by rounding.
    x_top, x_bottom, y_top, y_bottom = np.where(chosen, largest, -np.inf).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        xx, xy, yy = xx - x * x / count, xy - x * y / count, yy - y * y / count
        varies = (count > 1) & (x_top > -x_bottom) & (y_top > -y_bottom) & (xx > 0) & (yy > 0)
        return np.where(varies, np.clip(xy / np.sqrt(xx * yy), -1, 1), np.nan)
