"""A run at a glance: distributions by layer, the best and the worst, and what it was made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastexplain.ledger.responses import Responses
from fastexplain.report.columns import KINDS, SPLITS, ScoreColumns, by_site, first_places, name_at
from fastexplain.report.maps import maps_data, score_key
from fastexplain.report.summaries import QUANTILES
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

LISTED = 10
"""Neurons of a list."""

_HEADLINE = SPLITS[0]


def overview_data(
    run: Run, database: Database, statistics: Mapping[str, np.ndarray], scores: ScoreColumns
) -> dict[str, Any]:
    """A run at a glance.

    Args:
        statistics: see `columns.statistic_columns`.

    Returns:
        `quantiles` (the percentages) and `distributions`: for each key of `maps.maps_data` that
        any neuron has, `key`, `label`, `neurons`, and `sites`, each with `site`, `neurons` and
        `values` (at the quantiles; None where no neuron has one).
        `lists`: each with `name` (best, worst, beyond_lookup or beyond_explanation), `kind` (of
        `columns.KINDS`) and `neurons`, each with `neuron`, `score`, `lookup`, `method`, `model` and
        `text`. In `beyond_lookup` a rule or another explanation exceeds the table most.
        `explanations`: each with `method`, `model`, `version`, `explained` and `failed`.
        `cost`: each with `model`, `purpose`, `answered`, `failed`, `prompt_tokens`,
        `completion_tokens`, `cost` (US dollars, of all but the `unpriced` answers) and `unpriced`.

    Raises:
        RunError: a file or the database is damaged.
    """
    columns = dict(statistics)
    for kind in KINDS:
        columns |= {score_key(kind, split): scores.values[kind, split] for split in SPLITS}
    return {
        "quantiles": list(QUANTILES),
        "distributions": [
            _distribution(run, each, columns[each["key"]])
            for each in maps_data()["maps"]
            if np.isfinite(columns[each["key"]]).any()
        ],
        "lists": _lists(run, database, scores),
        "explanations": _explanations(run, database),
        "cost": _cost(database),
    }


def _distribution(run: Run, described: Mapping[str, Any], column: np.ndarray) -> dict[str, Any]:
    sites = []
    for site, own in by_site(run, column).items():
        finite = own[np.isfinite(own)]
        values = np.percentile(finite, QUANTILES).tolist() if len(finite) else None
        sites.append({"site": site, "neurons": len(finite), "values": values})
    return {
        "key": described["key"],
        "label": described["label"],
        "neurons": sum(each["neurons"] for each in sites),
        "sites": sites,
    }


def _lists(run: Run, database: Database, scores: ScoreColumns) -> list[dict[str, Any]]:
    """The lists that have any neuron."""
    lookup = scores.values["lookup", _HEADLINE]
    chosen: list[tuple[str, str, np.ndarray]] = []
    for kind in ("other", "rule", "list"):
        values = scores.values[kind, _HEADLINE]
        chosen += [
            ("best", kind, first_places(LISTED, -values)),
            ("worst", kind, first_places(LISTED, values)),
        ]
        if kind != "list":
            more = values - lookup
            chosen += [
                ("beyond_lookup", kind, first_places(LISTED, np.where(more > 0, -more, np.nan))),
                (
                    "beyond_explanation",
                    kind,
                    first_places(LISTED, np.where(more < 0, more, np.nan)),
                ),
            ]
    ids = [int(scores.ids[kind][place]) for _, kind, places in chosen for place in places]
    texts = _texts(database, ids)
    found = []
    for name, kind, places in chosen:
        neurons = []
        for place in places.tolist():
            text = texts.get(int(scores.ids[kind][place]))
            if text is None:
                continue  # it was replaced meanwhile
            row = {
                "neuron": name_at(run, place),
                "score": float(scores.values[kind, _HEADLINE][place]),
                "lookup": float(lookup[place]) if np.isfinite(lookup[place]) else None,
            }
            neurons.append(row | text)
        if neurons:
            found.append({"name": name, "kind": kind, "neurons": neurons})
    return found


def _texts(database: Database, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Method, model and text of explanations by their id."""
    wanted = sorted(set(ids))
    rows = database.stored(
        "explanations",
        "id, method, model, text",
        f"id IN ({', '.join('?' * len(wanted))})",
        wanted,
    )
    return {key: {"method": m, "model": model, "text": text} for key, m, model, text in rows}


def _explanations(run: Run, database: Database) -> list[dict[str, Any]]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for site in run.sites:  # all at once it takes twice as long: units have to be told from units
        rows = database.query(
            """SELECT method, model, version, count(DISTINCT iif(text IS NULL, NULL, unit)),
                sum(text IS NULL) FROM explanations WHERE site = ? GROUP BY 1, 2, 3""",
            (site,),
        )
        for method, model, version, explained, failed in rows:
            own = found.setdefault((method, model, version), [0, 0])
            own[0] += explained
            own[1] += failed
    names = ("method", "model", "version", "explained", "failed")
    with database.understood():
        return [dict(zip(names, (*key, *own), strict=True)) for key, own in sorted(found.items())]


def _cost(database: Database) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    summed: Sequence[str] = (
        "answered", "failed", "prompt_tokens", "completion_tokens", "cost", "unpriced",
    )  # fmt: skip
    for row in Responses(database).ledger():
        own = found.setdefault(
            (row.model, row.purpose),
            {"model": row.model, "purpose": row.purpose, **dict.fromkeys(summed, 0)},
        )
        for name in summed:
            own[name] += getattr(row, name)
    return list(found.values())
