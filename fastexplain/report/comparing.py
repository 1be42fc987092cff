"""Two explainers of a run, or two runs of models with the same neurons, neuron by neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import METHOD as LOOKUP
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.report.columns import name_at
from fastexplain.report.neuron import explanation_data
from fastexplain.results import CORRELATION, LIST
from fastexplain.run.directory import Run

SPLITS = ("top_and_random", "random_only")
LARGEST = 15
"""Neurons that are listed for each side: those that it explains better than the other by most."""

_OTHER = "other:"  # before the key of a side of the second run

_NORMAL = 1.959964
"""So many standard errors to each side have 95% of a normal distribution."""

_EXPLAINERS = """SELECT method, model FROM explanations
    WHERE text IS NOT NULL GROUP BY method, model ORDER BY method <> 'lookup', method, model"""

# The best last, and of equals the latest, so that it is what stays.
_SCORES = f"""SELECT e.site, e.unit, s.value FROM explanations e
    JOIN scores s ON s.explanation = e.id AND s.scorer = '{CORRELATION}'
        AND s.measure = '{CORRELATION}' AND s.split = ?
    WHERE e.method = ? AND e.model = ? AND e.text IS NOT NULL AND (? IS NULL OR s.judge = ?)
    ORDER BY s.value NULLS FIRST, e.id"""


class Side(NamedTuple):
    """One of the two that are compared.

    Attributes:
        key: names it in addresses.
        label: names it for readers.
        run: whose explanations.
        method, model: by which they are.
        judge: whose scores; None for the best of all.
    """

    key: str
    label: str
    run: Run
    method: str
    model: str
    judge: str | None


class Pair(NamedTuple):
    """Two sides, with a score over a split of each neuron, float32 `[neurons]`, NaN for none."""

    first: Side
    second: Side
    split: str
    a: np.ndarray
    b: np.ndarray


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
        for method, model in explainers:
            whose: list[tuple[str, str, str | None]] = [
                (f"{method}/{model}", f"{method} by {model}", None)
            ]
            if method == model:
                whose = [(method, method, None)]
            if method == LOOKUP:
                whose = [("table", "lookup's table", LOOKUP), (LIST, "lookup's text", LIST)]
            for key, label, judge in whose:
                side = Side(prefix + key, label + where, own, method, model, judge)
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


def scores_of(side: Side, split: str) -> np.ndarray:
    """A side's correlations over a split, float32 `[neurons]` in the order of the run's sites.

    Raises:
        RunError: the database is damaged, or has a neuron that the run has not.
    """
    first: dict[str, int] = {}
    total = 0
    for site in side.run.sites.values():
        first[site.name] = total
        total += site.units
    column = np.full(total, np.nan, np.float32)
    with side.run.database(read_only=True) as database:
        rows = database.query(_SCORES, (split, side.method, side.model, side.judge, side.judge))
    if rows:
        try:
            sites, units, values = zip(*rows, strict=True)
            places = np.array([first[site] for site in sites]) + np.array(units, np.int64)
            column[places] = np.array(values, np.float32)  # None: NaN
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(
                f"{side.run.path} is damaged: its database has neurons that it has not ({error})"
            ) from error
    return column


def summary_data(pair: Pair) -> dict[str, Any]:
    """How two sides differ.

    The interval is over neurons, as if they were drawn from many like them; that all rest on the
    same few random excerpts is not in it.

    Returns:
        `neurons` (with both scores), `only_a`, `only_b`, `a_higher`, `b_higher`; `difference` (the
        mean of a - b), `low`, `high` (its 95% interval); `correlation` (of both scores);
        `largest`: neurons that `a` or `b` explains better than the other by most, each with
        `neuron`, `a`, `b`, `text_a` and `text_b`. NaN is null.
    """
    known_a, known_b = ~np.isnan(pair.a), ~np.isnan(pair.b)
    places = np.nonzero(known_a & known_b)[0]
    a, b = pair.a[places].astype(np.float64), pair.b[places].astype(np.float64)
    differences = a - b
    mean = float(differences.mean()) if len(places) else None
    half = None
    if len(places) > 1:
        half = _NORMAL * float(differences.std(ddof=1)) / len(places) ** 0.5
    order = places[np.argsort(differences, kind="stable")]
    higher_b = order[:LARGEST]
    higher_a = order[::-1][:LARGEST]
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
            "a": _listed(pair, higher_a[pair.a[higher_a] > pair.b[higher_a]]),
            "b": _listed(pair, higher_b[pair.b[higher_b] > pair.a[higher_b]]),
        },
    }


def neuron_data_of(first: Side, second: Side, name: str) -> dict[str, Any]:
    """One neuron as two sides have it.

    Returns:
        `neuron`; `sides`, each with `label`, `explanation` (as `explanation_data`, or null) and
        `exemplar` (its strongest: `excerpt`, `tokens`, `activations`, `counted`, `lowest`,
        `highest`; null where there is none); `correlation` of its activations in two runs on the
        random excerpts that both have, and `shared`, how many these are: null and 0 where both
        sides are of one run or the runs are of other corpora.

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
            {
                "label": side.label,
                "explanation": _explanation(side, neuron),
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
    neurons = [NeuronId.parse(name_at(pair.first.run, int(place))) for place in places]
    texts = [_texts(side, neurons) for side in (pair.first, pair.second)]
    return [
        {
            "neuron": str(neuron),
            "a": float(pair.a[place]),
            "b": float(pair.b[place]),
            "text_a": text_a,
            "text_b": text_b,
        }
        for neuron, place, text_a, text_b in zip(neurons, places, *texts, strict=True)
    ]


def _texts(side: Side, neurons: list[NeuronId]) -> list[str | None]:
    found = (_explanation(side, neuron) for neuron in neurons)
    return [None if each is None else str(each["explanation"]) for each in found]


def _explanation(side: Side, neuron: NeuronId) -> dict[str, Any] | None:
    """The side's explanation with the best score; the newest where none has any."""
    with side.run.database(read_only=True) as database:
        rows = [
            row
            for row in database.explanations(neuron)
            if (row.method, row.model) == (side.method, side.model) and row.text is not None
        ]
    if not rows:
        return None

    def score(row: Any) -> float:
        value = row.scores and row.scores.top_and_random
        return -2.0 if value is None else value

    return explanation_data(max(rows, key=score))


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
