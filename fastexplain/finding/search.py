"""Neurons of a kind, the clearest first, with what shows that they are of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.kinds import kind_of
from fastexplain.finding.marked import MarkedSearch
from fastexplain.finding.results import Evidence, Hit, Search
from fastexplain.progress import Report, reported
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import TOP, StoredExplanation
from fastexplain.run.directory import Run
from fastexplain.run.selection import ALL, select_neurons

_EXEMPLARS = 3  # shown of each neuron


def find(
    run: Run,
    kind: str,
    neurons: str | NeuronId | Iterable[str | NeuronId] = ALL,
    *,
    where: str | None = None,
    limit: int = 20,
    progress: bool | Report = False,
) -> list[Hit]:
    """Find neurons of a kind; nothing is stored, and no model is asked.

    Args:
        run: from `sweep` or `open_run`.
        kind: one of `kinds.KINDS`, such as "repetition".
        neurons, where: among which, as for `explain`.
        limit: how many at most.
        progress: True shows a bar. A function is called with the number of layers done.

    Raises:
        UsageError: there is no such kind or neuron, or the run lacks what the search needs.
        RunError: a file is missing or damaged.
    """
    making = kind_of(kind)
    if limit < 1:
        raise UsageError(f"`limit` is {limit}; give 1 or more")
    names = [neurons] if isinstance(neurons, str | NeuronId) else neurons
    wanted: dict[int, list[int]] = {}
    for neuron in select_neurons(run, [str(name) for name in names], where=where):
        wanted.setdefault(neuron.layer, []).append(neuron.index)
    search = making.make(run)
    best: list[tuple[float, NeuronId, dict[str, float | int | str]]] = []
    with reported(progress, "Searching", len(wanted), "layers") as report:
        for done, (layer, indices) in enumerate(sorted(wanted.items()), start=1):
            found = search.layer(layer)
            own = np.unique(indices)
            own = own[~np.isnan(found.values[own])]
            own = own[np.argsort(-found.values[own], kind="stable")][:limit]
            for index in own.tolist():
                details = {name: _plain(each[index]) for name, each in found.details.items()}
                best.append((float(found.values[index]), NeuronId(layer, index), details))
            report(done)
    best.sort(key=lambda each: (-each[0], each[1]))
    return [
        replace(hit, value=value, details=details)
        for hit, (value, _, details) in zip(
            described(run, [neuron for _, neuron, _ in best[:limit]], search), best, strict=False
        )
    ]


def _plain(value: Any) -> float | int | str:
    """A value of a column as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def described(run: Run, neurons: Sequence[NeuronId], search: Search | None = None) -> list[Hit]:
    """Neurons with exemplars and their best explanations; those of a search show what it is for."""
    with run.database(read_only=True) as database:
        hits = []
        for neuron in neurons:
            row = best_explanation(database.explanations(neuron))
            text, score = (None, None) if row is None else (row.text, headline(row))
            shown = evidence(run.neuron(neuron), search)
            hits.append(Hit(neuron, None, {}, shown, text, score))
    return hits


def evidence(record: NeuronRecord, search: Search | None = None) -> list[Evidence]:
    """Top exemplars at their largest activations; of a search for a mark, those with it first."""
    found = []
    for exemplar in record.top:
        place = int(exemplar.activations[record.skip :].argmax()) + record.skip
        at = Evidence(exemplar.excerpt, place, float(exemplar.activations[place]), exemplar.tokens)
        marked = (
            isinstance(search, MarkedSearch) and search.mark(exemplar.token_ids[None])[0, place]
        )
        found.append((not marked, at))
    found.sort(key=lambda each: each[0])  # stable: the strongest first of each
    return [at for _, at in found[:_EXEMPLARS]]


def best_explanation(rows: Sequence[StoredExplanation]) -> StoredExplanation | None:
    """The top's explanation with the highest headline score; of those without, the first."""
    return max((row for row in rows if row.text and row.side == TOP), key=worth, default=None)


def worth(row: StoredExplanation) -> float:
    """The headline by which explanations are ordered: one that has none comes last."""
    value = headline(row)
    return -np.inf if value is None else value


def headline(row: StoredExplanation) -> float | None:
    """The correlation of its text over top and random excerpts; None if undefined."""
    scores = row.text_scores or row.scores
    return None if scores is None else scores.top_and_random
