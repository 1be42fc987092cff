"""All that the viewer's page of a neuron shows, as plain data in one answer.

It is small, so that it can be embedded in a page of its own: an excerpt's tokens stand once, and
activations have four significant digits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import simulate_by_lookup
from fastexplain.records import NeuronId, NeuronRecord, SignClass
from fastexplain.report.columns import first_places
from fastexplain.report.entries import entries_in, text_of_entries
from fastexplain.report.excerpts import banded, excerpts_data, four_digits, histogram_data
from fastexplain.report.names import unusual_prompt
from fastexplain.report.neuron import (
    full_of,
    steering_data,
    stored_simulations,
    weights_data,
)
from fastexplain.report.ruled import is_rule
from fastexplain.results import TOP, StoredExplanation
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

_ROWS = 20  # of the tables, the strongest tokens and as many pairs


def page_data(
    run: Run, name: str | NeuronId, database: Database | None = None, *, tables: bool = True
) -> dict[str, Any]:
    """What the page of a neuron shows. Numbers that are not known are null.

    Args:
        database: the run's, where it is open already.
        tables: have what the tables predict, which takes as long as all else, or leave that to
            `table_data`.

    Returns:
        `neuron`, `kind` (of its site), `previous` and `next` (names, or null at the run's ends);
        `skip`, the first counted token; `scale`, the activations of the deepest colours (`lowest`
        below 0, `highest` above); `statistics`; `histogram` (see `excerpts.histogram_data`);
        `excerpts`, by id (see `excerpts.excerpts_data`); `exemplars`: `top`, `bottom` and
        `random`, each of `excerpt` and `values`, one a token, and `quantile` (see
        `excerpts.banded`); `explanations` (see `_explanation`); `simulations`, each with
        `explanation`, `simulator`, `version`, `full` (the value that stands for the highest
        activation), `sign` (-1 where it is of the bottom, whose values are -activation) and
        `values` by excerpt, null of rules (see `ruled.RuledExcerpts`) and of tables that are left
        out; `rows`, the tables'
        strongest tokens and pairs, each with `token`, `previous` (null for a token), `mean` and
        `count`; `steering` and `weights` as `report.neuron` has them; `signs` (see `_signs`).

    Raises:
        UsageError: the name is no neuron's, or no neuron of this run.
        RunError: a file is missing or damaged.
    """
    record = run.neuron(name)
    opened = run.database(read_only=True) if database is None else contextlib.nullcontext(database)
    with opened as database:
        rows = database.explanations(record.id)
        simulated: list[tuple[StoredExplanation, dict[int, np.ndarray] | None]] = []
        for row in rows:
            if row.method == "lookup":
                simulated.append((row, simulate_by_lookup(run, record) if tables else None))
            simulated.extend(stored_simulations(run, record, row, database))
        scores = {
            row.id: [
                {"scorer": score.scorer, "judge": score.judge, "version": score.version}
                | score.measured._asdict()
                for score in database.scores(row.id)
            ]
            for row in rows
        }
        steering = database.steering(record.id)
    found, signs = record.statistics, _signs(run.signs(record.id))
    exemplars: dict[str, list[dict[str, Any]]] = {
        kind: [
            {"excerpt": each.excerpt, "values": values}
            for each, values in zip(
                kept, four_digits(np.array([each.activations for each in kept])), strict=True
            )
        ]
        for kind, kept in (
            ("top", record.top),
            ("bottom", record.bottom),
            ("random", record.random),
        )
    }
    exemplars["quantile"] = banded(found)
    known = {each.excerpt: each.tokens for each in (*record.top, *record.bottom, *record.random)}
    of_signs = [own["exemplars"] for own in signs]
    shown = {each["excerpt"] for kept in (*exemplars.values(), *of_signs) for each in kept}
    explanations = {row.id: row for row in reversed(rows)}
    return {
        "neuron": str(record.id),
        "kind": run.sites[record.id.site].kind,
        **_neighbours(run, record.id),
        "skip": record.skip,
        "scale": {"lowest": _number(found.minimum), "highest": _number(found.maximum)},
        "statistics": {
            name: value if isinstance(value, int) else _number(value)
            for name, value in vars(found).items()
            if not isinstance(value, np.ndarray)
        },
        "histogram": histogram_data(found),
        "excerpts": excerpts_data(run, shown, known),
        "exemplars": exemplars,
        "explanations": [
            _explanation(run, record, explanations[id_], scores[id_])
            for id_ in dict.fromkeys(row.id for row in rows)
        ],
        "simulations": [_simulation(found.maximum, each, shown) for each in simulated]
        + [_simulation(found.maximum, (row, None), shown) for row in rows if is_rule(row)],
        "rows": _table_rows(run, record),
        "steering": steering_data(steering),
        "weights": weights_data(run.weights(record.id)),
        "signs": signs,
    }


def table_data(run: Run, name: str) -> dict[str, Any]:
    """What the whole table predicts of a neuron's test excerpts.

    Returns:
        `values` by excerpt, one a token, null where one is not counted.

    Raises:
        UsageError: there is no such neuron, or no tables are kept of it.
        RunError: a file is missing or damaged.
    """
    record = run.neuron(name)
    if record.id.place:
        raise UsageError(
            f"{record.id} is no neuron of a layer's MLP; of others there are no tables"
        )
    found = simulate_by_lookup(run, record)
    return {"values": {str(excerpt): four_digits(values) for excerpt, values in found.items()}}


def _signs(classes: Sequence[SignClass] | None) -> list[dict[str, Any]]:
    """The sign classes, none where the sweep kept none.

    Returns:
        `signs`, `tokens`, `share`, `mean`, `mass`, `extreme` (see `SignClass`); and `exemplars`,
        each of `excerpt` and `values`, one a token, null on the tokens of other classes.
    """
    return [
        {
            "signs": each.name,
            "tokens": each.tokens,
            **{name: _number(getattr(each, name)) for name in ("share", "mean", "mass", "extreme")},
            "exemplars": [
                {"excerpt": exemplar.excerpt, "values": values}
                for exemplar, values in zip(each.exemplars, four_digits(_alone(each)), strict=True)
            ],
        }
        for each in classes or ()
    ]


def _alone(found: SignClass) -> np.ndarray:
    """A class's exemplars, float32 `[exemplars, tokens]`, NaN on the tokens of other classes."""
    own = zip(found.exemplars, found.members, strict=True)
    return np.array([np.where(members, each.activations, np.nan) for each, members in own])


def _neighbours(run: Run, neuron: NeuronId) -> dict[str, str | None]:
    """The neurons before and behind it, in the order of sites and indices."""
    sites = list(run.sites.values())
    place = [site.name for site in sites].index(neuron.site)
    before = after = None
    if neuron.index > 0:
        before = f"{neuron.site}:{neuron.index - 1}"
    elif place > 0:
        before = f"{sites[place - 1].name}:{sites[place - 1].units - 1}"
    if neuron.index + 1 < sites[place].units:
        after = f"{neuron.site}:{neuron.index + 1}"
    elif place + 1 < len(sites):
        after = f"{sites[place + 1].name}:0"
    return {"previous": before, "next": after}


def _explanation(
    run: Run, record: NeuronRecord, row: StoredExplanation, scores: list[dict[str, Any]]
) -> dict[str, Any]:
    """One explanation.

    Returns:
        `id`, `method`, `model`, `version`, `text` (null if it failed), `failure`, `parameters`,
        `parent` (another's id), `created`, `cost` (in US dollars); `scores`, each with `scorer`,
        `judge`, `version` and what `Measured` has; `prompt`, see `unusual_prompt`; by lookup
        `entries`, as `ShownEntry` has them; by a rule `terms`, each with `term`, `value`, `mean`
        and `count`.
    """
    data: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("id", "method", "model", "version", "text", "failure", "parameters", "parent",
                     "created", "cost")
    } | {"scores": scores, "prompt": unusual_prompt(row), "entries": [], "terms": []}  # fmt: skip
    if row.method == "lookup" and (entries := entries_in(run, record, row)):
        data["entries"] = [vars(entry) for entry in entries]
        data["text"] = text_of_entries(entries, row.parameters["default"])
    if row.method == row.model == "rule":
        data["terms"] = row.data
    return data


def _simulation(
    highest: float,
    simulated: tuple[StoredExplanation, dict[int, np.ndarray] | None],
    shown: Container[int],
) -> dict[str, Any]:
    """A simulation of the excerpts that are shown; where there are none, the page asks for it."""
    row, excerpts = simulated
    values, full = None, highest  # of a rule or a table, which the page asks for
    if excerpts is not None:
        full = full_of(row, excerpts, highest)
        known = [excerpt for excerpt in excerpts if excerpt in shown]
        digits = four_digits(np.array([excerpts[excerpt] for excerpt in known]))
        values = dict(zip(map(str, known), digits, strict=True))
    return {
        "explanation": row.id,
        "simulator": row.simulator,
        "version": row.simulation,
        "full": _number(full),
        "sign": 1 if row.side == TOP else -1,
        "values": values,
    }


def _table_rows(run: Run, record: NeuronRecord) -> list[dict[str, Any]]:
    """The tokens and pairs with the highest means of max(activation, 0) in the tables."""
    tables, neuron = run.tables, record.id
    if neuron.place or not len(tables.tokens):
        return []
    found: list[dict[str, Any]] = []
    kinds: Sequence[tuple[str, np.ndarray, np.ndarray]] = (
        ("tokens", tables.tokens[:, None], tables.token_counts),
        ("pairs", tables.pairs, tables.pair_counts),
    )
    overall = record.statistics.mean_positive
    for name, ids, counts in kinds:
        sums = run.array(neuron.layer, f"tables.{name}", neuron.index).astype(np.float64)
        # A rare token needs more than one high place: the lookup's own shrinkage.
        weight = 0.5 if name == "tokens" else 2.0
        estimate = (sums + weight * overall) / (counts + weight)
        rows = first_places(_ROWS, -estimate)
        of_rows = (ids[rows].tolist(), sums[rows].tolist(), counts[rows].tolist())
        for own, total, count in zip(*of_rows, strict=True):
            if total > 0:
                texts = run.token_texts(own)
                found.append(
                    {
                        "token": texts[-1],
                        "previous": texts[0] if len(texts) > 1 else None,
                        "mean": float(f"{total / count:.4g}"),
                        "count": count,
                    }
                )
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
