"""Two explainers of a run, or two runs of models with the same neurons, neuron by neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import METHOD as LOOKUP
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.report.columns import (
    SPLITS,
    Explained,
    Explainer,
    ScoreColumns,
    first_places,
    name_at,
    neurons_of,
)
from fastexplain.report.neuron import explanation_data
from fastexplain.results import LIST, Scores, StoredExplanation
from fastexplain.run.directory import Run

LARGEST = 15
"""Neurons that are listed for each side: those that it explains better than the other by most."""

_OTHER = "other:"  # before the key of a side of the second run

_NORMAL = 1.959964
"""So many standard errors to each side have 95% of a normal distribution."""

_EXPLAINERS = "SELECT DISTINCT method, model FROM explanations WHERE text IS NOT NULL"


class Side(NamedTuple):
    """One of the two that are compared.

    Attributes:
        key: names it in addresses.
        label: names it for readers.
        run: whose explanations.
        explainer: by which they are, and whose scores.
    """

    key: str
    label: str
    run: Run
    explainer: Explainer

    @property
    def scores_text(self) -> bool:
        """Whether it is the explanation's text that is scored; of a lookup it may be its table."""
        return self.explainer.judge != LOOKUP


class Pair(NamedTuple):
    """Two sides with what they have of each neuron.

    Attributes:
        first, second: the sides.
        split: over which the scores are.
        a, b: float32 `[neurons]`, each side's scores; NaN for none.
        ids: int64 `[neurons]` for each side, of the explanations that have these; 0 for none.
    """

    first: Side
    second: Side
    split: str
    a: np.ndarray
    b: np.ndarray
    ids: tuple[np.ndarray, np.ndarray]


def check_comparable(run: Run, other: Run) -> None:
    """Raise UsageError unless two runs have the same sites with as many units."""
    mine, theirs = ({name: site.units for name, site in r.sites.items()} for r in (run, other))
    if mine == theirs:
        return
    site = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
    raise UsageError(
        f"{other.path} can't be compared with {run.path}: site {site} has "
        f"{theirs.get(site, 'no')} units there and {mine.get(site, 'no')} here; compare runs of "
        "models with the same layers and widths"
    )


def sides_of(run: Run, other: Run | None = None) -> dict[str, Side]:
    """What can be compared, by key: explainers of the run, then those of the other.

    Raises:
        RunError: a database can't be read.
    """
    found: dict[str, Side] = {}
    for prefix, own in (("", run), (_OTHER, other)):
        if own is None:
            continue
        where = f" ({own.path.resolve().name})" if other is not None else ""
        with own.database(read_only=True) as database:
            explainers = database.query(_EXPLAINERS)
        for method, model in sorted(explainers, key=lambda own: (own[0] != LOOKUP, own)):
            whose: list[tuple[str, str, str | None]] = [
                (f"{method}/{model}", f"{method} by {model}", None)
            ]
            if method == model:
                whose = [(method, method, None)]
            if method == LOOKUP:
                whose = [("table", "lookup's table", LOOKUP), (LIST, "lookup's text", LIST)]
            for key, label, judge in whose:
                explainer = Explainer(method, model, judge)
                side = Side(prefix + key, label + where, own, explainer)
                found[side.key] = side
    return found


def sides_data(sides: Mapping[str, Side], run: Run, other: Run | None) -> dict[str, Any]:
    """What can be compared.

    Returns:
        `sides` (each with `key` and `label`), `splits`, and `other`: null, or the second run's
        `name` and `same_corpus`, whether both were swept on the same excerpts.
    """
    return {
        "sides": [{"key": side.key, "label": side.label} for side in sides.values()],
        "splits": list(SPLITS),
        "other": other
        and {"name": other.path.resolve().name, "same_corpus": same_corpus(run, other)},
    }


def same_corpus(run: Run, other: Run) -> bool:
    """Whether two runs were swept on the same excerpts."""
    mine, theirs = (own.manifest["corpus"].get("fingerprint") for own in (run, other))
    return mine is not None and mine == theirs


def pair_of(
    first: Side, second: Side, split: str, mine: ScoreColumns, theirs: ScoreColumns
) -> Pair:
    """Two sides with the columns of their runs; who is not in them has no score there yet."""
    a, b = (
        columns.explainers.get(side.explainer) or Explained.nothing(neurons_of(side.run))
        for side, columns in ((first, mine), (second, theirs))
    )
    return Pair(first, second, split, a.values[split], b.values[split], (a.ids, b.ids))


def summary_data(pair: Pair) -> dict[str, Any]:
    """How two sides differ.

    The interval is over neurons, as if they were drawn from many like them; that all rest on the
    same few random excerpts is not in it.

    Returns:
        `neurons` (with both scores), `only_a`, `only_b`, `a_higher`, `b_higher`; `difference` (the
        mean of a - b), `low`, `high` (its 95% interval); `correlation` (of both scores);
        `largest`: neurons that `a` or `b` explains better than the other by most, each with
        `neuron`, `a`, `b`, `text_a` and `text_b`; `text_scored`: for each side, whether it is its
        text that is scored. NaN is null.
    """
    known_a, known_b = ~np.isnan(pair.a), ~np.isnan(pair.b)
    places = np.nonzero(known_a & known_b)[0]
    a, b = pair.a[places].astype(np.float64), pair.b[places].astype(np.float64)
    differences = a - b
    mean = float(differences.mean()) if len(places) else None
    half = None
    if len(places) > 1:
        half = _NORMAL * float(differences.std(ddof=1)) / len(places) ** 0.5
    higher_a, higher_b = (
        places[first_places(LARGEST, keys)]
        for keys in (
            np.where(differences > 0, -differences, np.nan),
            np.where(differences < 0, differences, np.nan),
        )
    )
    return {
        "neurons": len(places),
        "only_a": int((known_a & ~known_b).sum()),
        "only_b": int((known_b & ~known_a).sum()),
        "a_higher": int((differences > 0).sum()),
        "b_higher": int((differences < 0).sum()),
        "difference": mean,
        "low": None if half is None or mean is None else mean - half,
        "high": None if half is None or mean is None else mean + half,
        "correlation": _correlation(a, b),
        "largest": {
            "a": _listed(pair, higher_a),
            "b": _listed(pair, higher_b),
        },
        "text_scored": [side.scores_text for side in (pair.first, pair.second)],
    }


def neuron_data_of(first: Side, second: Side, name: str) -> dict[str, Any]:
    """One neuron as two sides have it.

    Returns:
        `neuron`; `sides`, each with `label`, `explanation` (as `explanation_data`, or null),
        `scores` (over `top_and_random` with the interval's ends `low` and `high`, and over
        `random_only`; null where it has none), `text_scored` (see `summary_data`) and `exemplar`
        (its strongest: `excerpt`, `tokens`, `activations`, `counted`, `lowest`, `highest`; null
        where there is none); `correlation` of its activations in two runs on the random excerpts
        that both have, and `shared`, how many these are: null and 0 where both sides are of one
        run or the runs are of other corpora.

    Raises:
        UsageError: there is no such neuron.
        RunError: a file is missing or damaged.
    """
    neuron = first.run.check(NeuronId.parse(name))
    records = {side.run: side.run.neuron(neuron) for side in (first, second)}
    correlation, shared = None, 0
    if first.run is not second.run and same_corpus(first.run, second.run):
        correlation, shared = _together(*(records[side.run] for side in (first, second)))
    return {
        "neuron": str(neuron),
        "sides": [
            _explanation(side, neuron)
            | {
                "label": side.label,
                "text_scored": side.scores_text,
                "exemplar": _exemplar(records[side.run]),
            }
            for side in (first, second)
        ],
        "correlation": correlation,
        "shared": shared,
    }


def _together(first: NeuronRecord, second: NeuronRecord) -> tuple[float | None, int]:
    """The correlation of two records' activations on shared random excerpts, and their number."""

    def counted(record: NeuronRecord) -> dict[int, np.ndarray]:
        skip = max(first.skip, second.skip)
        return {each.excerpt: each.activations[skip:] for each in record.random}

    mine, theirs = counted(first), counted(second)
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return None, 0
    a, b = (np.concatenate([own[id_] for id_ in shared]) for own in (mine, theirs))
    return _correlation(a.astype(np.float64), b.astype(np.float64)), len(shared)


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's; None where a side has no variance."""
    if len(a) < 2 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _listed(pair: Pair, places: np.ndarray) -> list[dict[str, Any]]:
    texts = [
        _texts(side, ids[places].tolist())
        for side, ids in zip((pair.first, pair.second), pair.ids, strict=True)
    ]
    return [
        {
            "neuron": name_at(pair.first.run, place),
            "a": float(pair.a[place]),
            "b": float(pair.b[place]),
            "text_a": text_a,
            "text_b": text_b,
        }
        for place, text_a, text_b in zip(places.tolist(), *texts, strict=True)
    ]


def _texts(side: Side, ids: Sequence[int]) -> list[str | None]:
    """Explanations by their ids; None for one that was replaced meanwhile."""
    condition = f"id IN ({', '.join('?' * len(ids))})"
    with side.run.database(read_only=True) as database:
        found = dict(database.stored("explanations", "id, text", condition, ids))
    return [found.get(each) for each in ids]


def _explanation(side: Side, neuron: NeuronId) -> dict[str, Any]:
    """The side's explanation with the best score, the newest where none has any; and its scores."""
    with side.run.database(read_only=True) as database:
        rows = [
            row
            for row in database.explanations(neuron)
            if (row.method, row.model) == side.explainer[:2] and row.text is not None
        ]
    if not rows:
        return {"explanation": None, "scores": None}

    def scores(row: StoredExplanation) -> Scores | None:
        return row.text_scores if side.explainer.judge == LIST else row.scores

    def headline(row: StoredExplanation) -> float:
        own = scores(row)
        return -2.0 if own is None or own.top_and_random is None else own.top_and_random

    best = max(rows, key=headline)
    names = ("top_and_random", "low", "high", "random_only")
    own = scores(best)
    return {
        "explanation": explanation_data(best),
        "scores": own and {name: getattr(own, name) for name in names},
    }


def _exemplar(record: NeuronRecord) -> dict[str, Any] | None:
    if not record.top:
        return None
    best: Exemplar = record.top[0]
    return {
        "excerpt": best.excerpt,
        "tokens": best.tokens,
        "activations": best.activations.tolist(),
        "counted": record.skip,
        "lowest": record.statistics.minimum,
        "highest": record.statistics.maximum,
    }
