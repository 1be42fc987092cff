"""Lookup's score with whole documents left out of its tables: what it knows of other texts.

The lookup's own score leaves out the excerpts that it is tested on. The rest of their documents
stays in the tables, with their names and turns of phrase. Here that is left out too:

1. The documents are those of all random excerpts of the test split, which all neurons share. Top
   excerpts are every neuron's own, and so would be their documents: nearly the whole corpus. So the
   score is over random excerpts alone.
2. A second pass runs the subject on all excerpts of these documents, and sums what they put into
   the tables' rows that the tested tokens have.
3. These sums are taken from the tables, for every neuron alike. So are, as for the lookup's own
   score, the neuron's top excerpts of the test split, by themselves: the two scores differ by the
   documents alone.

A regression under the tables takes no part: the score is that of the tables alone, also in a run
whose lookup has one.

Where the subject is in 16 bits, the second pass agrees with the sweep to their rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastexplain.errors import RunError
from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.kernels.scalars import RESIDUE, pair_estimate, token_estimate
from fastexplain.run.agreement import Agreement, agreement
from fastexplain.run.directory import Run
from fastexplain.run.splits import held_out
from fastexplain.subject.model import Subject

_BATCH = 32  # excerpts in a forward pass
_MEAN, _NONE = 0, -1


def score_without_documents(
    run: Run, layers: Sequence[int], subject: Subject
) -> Iterator[tuple[int, Agreement, np.ndarray]]:
    """Score the lookup's predictions of these layers' neurons, whole documents left out.

    Returns:
        For each layer, in ascending order: the layer, the agreement over `random_only`, and which
        excerpts are top ones (none), bool `[N, E]`.

    Raises:
        RunError: the sweep kept no tables or no random exemplars for the test split.
    """
    layer_tables(run, layers[0], slice(0, 1))  # raises without tables
    random_ids = run.array(layers[0], "random.ids")
    _, [slots] = held_out(np.full((1, 1), _NONE), random_ids, every=True)
    tested = random_ids[slots[slots >= 0]]
    if not len(tested):
        raise RunError(
            f"{run.path} has no random excerpts to be tested on; sweep again with `random` of 3 or "
            "more"
        )
    left_out = np.flatnonzero(np.isin(run.documents, run.documents[tested]))
    rows = run.tables.rows(run.excerpts)
    places = [_Places.of(own, tested, run.skip) for own in rows]
    sums = _second_pass(run, subject, layers, left_out, places, rows)
    for layer in sorted(layers):
        ids, activations, top = split_excerpts(run, layer)
        tops = int(top[0].sum())
        random = ids[:, tops:]
        own = np.where(np.isin(ids[:, :tops], left_out), _NONE, ids[:, :tops])
        predicted = _predict(run, layer, places, sums[layer], left_out, rows, own, activations)
        # A neuron is not tested on all of them: some are among its top ones.
        found = np.searchsorted(np.sort(tested), random)
        chosen = np.argsort(tested)[np.minimum(found, len(tested) - 1)]
        simulated = predicted[np.arange(len(ids))[:, None], chosen]
        simulated[random < 0] = np.nan
        true = activations[:, tops:, run.skip :]
        [over] = agreement(true, simulated, top[:, tops:], sets=("random_only",))
        yield layer, over, top[:, tops:]


class _Places(NamedTuple):
    """The U rows of one table that the tested excerpts' counted tokens have.

    Attributes:
        rows: int `[U]`, in the table, ascending.
        at: int `[tested, counted]`, the place in `rows` of each token; U where it has no row.
    """

    rows: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, tested: np.ndarray, skip: int) -> _Places:
        """Args: rows: int32 `[excerpts, tokens]`, the table's, of all excerpts."""
        own = rows[tested, skip:]
        used = np.unique(own[own >= 0])
        return cls(used, _among(used, own))


def _among(used: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The place of each row in `used`, which is ascending; len(used) where it isn't there."""
    if not len(used):
        return np.zeros(rows.shape, np.int64)
    found = np.minimum(np.searchsorted(used, rows), len(used) - 1)
    return np.where(used[found] == rows, found, len(used))


def _second_pass(
    run: Run,
    subject: Subject,
    layers: Sequence[int],
    left_out: np.ndarray,
    places: list[_Places],
    rows: tuple[np.ndarray, ...],
) -> dict[int, list[np.ndarray]]:
    """What excerpts put into tables, by layer: of max(activation, 0) the sums over their tokens.

    Returns:
        Of each layer the neurons' totals, float64 `[1, N]`, then for each table the sums in its
        rows, `[U, N]`.
    """
    sums = {
        layer: [np.zeros((size, run.width(layer))) for size in (1, *(len(p.rows) for p in places))]
        for layer in layers
    }
    for start in range(0, len(left_out), _BATCH):
        batch = left_out[start : start + _BATCH]
        at = [
            torch.from_numpy(_among(place.rows, own[batch, run.skip :]).ravel())
            for place, own in zip(places, rows, strict=True)
        ]

        def add(layer: int, acts: Tensor, at: list[Tensor] = at) -> None:
            values = acts[:, len(subject.lead) + run.skip :].float().clamp(min=0)
            values = values.reshape(-1, values.shape[-1])
            totals, *tables = sums[layer]
            totals += values.sum(dim=0).cpu().numpy()
            for table, own in zip(tables, at, strict=True):
                # In float32 within a batch, as the sweep has it; what has no row is dropped.
                part = values.new_zeros((len(table) + 1, values.shape[-1]))
                table += part.index_add_(0, own.to(part.device), values)[:-1].cpu().numpy()

        subject.trunk(torch.from_numpy(run.excerpts[batch]), add, layers)
    return sums


def _predict(
    run: Run,
    layer: int,
    places: list[_Places],
    sums: list[np.ndarray],
    left_out: np.ndarray,
    rows: tuple[np.ndarray, ...],
    ids: np.ndarray,
    activations: np.ndarray,
) -> np.ndarray:
    """Predict the tested excerpts from tables without documents and without some more excerpts.

    The formulas are those of `fastexplain.kernels.lookup`.

    Args:
        ids, activations: int `[N, K]` and float32 `[N, K or more, tokens]`, each neuron's excerpts
            to leave out beside those of the documents; -1 for none.

    Returns:
        float32 `[N, tested, counted]`.
    """
    tables = layer_tables(run, layer)
    neurons, counted = len(ids), run.excerpts.shape[1] - run.skip
    more = np.maximum(activations[:, : ids.shape[1], run.skip :].astype(np.float64), 0)
    more[ids < 0] = 0
    rest = tables.count - len(left_out) * counted - (ids >= 0).sum(axis=1) * counted
    kept = _remaining(tables.positive_sums, sums[_MEAN][0] + more.sum(axis=(1, 2)), rest)
    mean = kept / np.maximum(rest, 1)
    estimate: np.ndarray = np.broadcast_to(mean[:, None, None], (neurons, *places[0].at.shape))
    for own, place, held, table, behind, formula in zip(
        rows,
        places,
        sums[1:],
        (tables.token_sums, tables.pair_sums, tables.triple_sums),
        (tables.token_counts, tables.pair_counts, tables.triple_counts),
        (token_estimate, pair_estimate, pair_estimate),
        strict=True,
    ):
        size = len(place.rows)
        if not size:
            continue
        found = _among(place.rows, own[left_out, run.skip :])
        gone = np.bincount(found.ravel(), minlength=size + 1)[:size]
        # Of each neuron's own excerpts: one number for a row and a neuron, the last row for none.
        at = _among(place.rows, own[ids, run.skip :])
        at[ids < 0] = size
        flat = (at * neurons + np.arange(neurons)[:, None, None]).ravel()
        part, count = (
            np.bincount(flat, weights, minlength=(size + 1) * neurons).reshape(size + 1, neurons)
            for weights in (more.ravel(), None)
        )
        left = (behind[place.rows] - gone)[:, None] - count[:size]
        total = _remaining(table[place.rows].astype(np.float64), held + part[:size], left)
        with_row = np.minimum(place.at, size - 1)
        known = formula(
            np.moveaxis(total[with_row], 2, 0), np.moveaxis(left[with_row], 2, 0), estimate
        )
        estimate = np.where(place.at < size, known, estimate)
    return estimate.astype(np.float32)


def _remaining(total: np.ndarray, gone: np.ndarray, left: np.ndarray) -> np.ndarray:
    """`fastexplain.kernels.scalars.remaining` of arrays."""
    rest = total - gone
    return np.where((left <= 0) | (rest <= total * RESIDUE), 0.0, rest)
