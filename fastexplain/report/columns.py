"""All neurons of a run as columns of float32: what pictures and lists of the whole run are made of.

`Run.table` has the same numbers in float64 with the names of all neurons, in seconds for a run of
300,000; here statistics come straight from the files, and scores site by site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastexplain.explainers.lookup import METHOD as LOOKUP
from fastexplain.results import BOTTOM, CORRELATION, LIST, side_of
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

KINDS = ("lookup", "list", "rule", "other")
"""Whose scores there are: the whole table's, its text's, rules', all others' of the top."""

SPLITS = ("top_and_random", "random_only")

_BLOCK = 256  # numbers of which the smallest is looked for first

# One row for each judge of an explanation.
_ROWS = f"""SELECT e.method, e.model,
        CASE WHEN e.method = '{LOOKUP}' THEN iif(s.judge = '{LIST}', '{LIST}', '{LOOKUP}') END,
        e.unit, e.id, s.value, (SELECT value FROM scores WHERE explanation = e.id
            AND scorer = s.scorer AND judge = s.judge AND version = s.version
            AND split = '{SPLITS[1]}' AND measure = s.measure)
    FROM explanations e JOIN scores s ON s.explanation = e.id AND s.scorer = '{CORRELATION}'
        AND s.measure = '{CORRELATION}' AND s.split = '{SPLITS[0]}'
    WHERE e.site = ? AND e.text IS NOT NULL"""


class Explainer(NamedTuple):
    """Whose scores they are.

    Attributes:
        method, model: as stored; explanations of the bottom have a method of their own.
        judge: "lookup" or "list", of a lookup's table and of its text; None for the best judge.
    """

    method: str
    model: str
    judge: str | None

    @property
    def kind(self) -> str | None:
        """The one of `KINDS` that it belongs to; None for explainers of the bottom."""
        if side_of(self.method) == BOTTOM:
            return None
        if self.judge is not None:
            return self.judge
        return "rule" if self.method == self.model == "rule" else "other"


class Explained(NamedTuple):
    """What an explainer has of all neurons.

    Attributes:
        values: by split of `SPLITS`, float32 `[neurons]`; NaN where there is no score or it is
            undefined.
        ids: int64 `[neurons]`, the explanation's id in the database; 0 for none.
    """

    values: Mapping[str, np.ndarray]
    ids: np.ndarray

    @classmethod
    def nothing(cls, neurons: int) -> Explained:
        """Of an explainer without any score."""
        blank = {split: np.full(neurons, np.nan, np.float32) for split in SPLITS}
        return cls(blank, np.zeros(neurons, np.int64))


@dataclass(frozen=True, eq=False)
class ScoreColumns:
    """The correlations of a run's explanations.

    Where a neuron has several explanations of a kind, or several judges of one, it is the one with
    the best headline that counts, and of equals the latest.

    Attributes:
        values, ids: as those of `Explained`, by `(kind, split)` and by kind of `KINDS`: of all
            explainers of the kind.
        explainers: what each has that has scores.
        headlines: float32 `[ids]`, by the ids of all explanations, of bottoms too, the best
            headline as `finding.search.headline` has it: of a lookup explanation its text's, not
            its table's; NaN where there is none. Ids from its length on had none either.
    """

    values: Mapping[tuple[str, str], np.ndarray]
    ids: Mapping[str, np.ndarray]
    explainers: Mapping[Explainer, Explained]
    headlines: np.ndarray


def neurons_of(run: Run) -> int:
    """Neurons of all sites."""
    return sum(site.units for site in run.sites.values())


def name_at(run: Run, place: int) -> str:
    """The name of the neuron at a place of a column, such as `5:131`."""
    for site in run.sites.values():
        if place < site.units:
            return f"{site.name}:{place}"
        place -= site.units
    raise IndexError("there are fewer neurons")


def by_site(run: Run, column: np.ndarray) -> dict[str, np.ndarray]:
    """Views of a column's parts by site."""
    ends = np.cumsum([site.units for site in run.sites.values()])
    return dict(zip(run.sites, np.split(column, ends[:-1]), strict=True))


def first_places(count: int, keys: np.ndarray) -> np.ndarray:
    """The places of the `count` smallest numbers, the smallest first, NaN left out.

    Of equal ones the first come first. Sorting all of 300,000 takes 40 times as long.
    """
    places = np.flatnonzero(np.isfinite(keys))
    values = keys[places]
    # The smallest numbers of `count` blocks are no larger than the largest of these.
    blocks = np.arange(0, len(values), _BLOCK)
    if len(blocks) > count:
        places, values = _up_to(count, np.minimum.reduceat(values, blocks), places, values)
    if len(values) > count:
        places, values = _up_to(count, values, places, values)
    return places[np.argsort(values, kind="stable")][:count]


def _up_to(
    count: int, of: np.ndarray, places: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places and values that are no larger than the `count`-th smallest of some numbers."""
    kept = values <= np.partition(of, count - 1)[count - 1]
    return places[kept], values[kept]


def statistic_columns(run: Run) -> dict[str, np.ndarray]:
    """The numbers of `records.Statistics` by name, float32 `[neurons]` each.

    Raises:
        RunError: a file is missing or damaged.
    """
    found = [run.statistics(name) for name in run.sites]
    return {
        name: np.concatenate([own[name] for own in found]).astype(np.float32) for name in found[0]
    }


def score_columns(run: Run, database: Database) -> ScoreColumns:
    """The scores of all explanations.

    Raises:
        RunError: the database is damaged, or has a neuron that the run has not.
    """
    total = neurons_of(run)
    kinds = {kind: Explained.nothing(total) for kind in KINDS}
    explainers: dict[Explainer, Explained] = {}
    keys, headlines = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    start = 0
    for site in run.sites.values():
        rows = database.query(_ROWS, (site.name,))
        with database.understood():
            if rows:
                found = _Rows.of(rows, start, site.units)
                for name in found.names:
                    if name not in explainers:
                        explainers[name] = Explained.nothing(total)
                    found.put(explainers[name], [name])
                for kind, own in kinds.items():
                    found.put(own, [name for name in found.names if name.kind == kind])
                own_keys, own_headlines = found.headlines()
                keys.append(own_keys)
                headlines.append(own_headlines)
        start += site.units
    every = np.concatenate(keys)
    by_id = np.full(every.max(initial=0) + 1, np.nan, np.float32)
    np.fmax.at(by_id, every, np.concatenate(headlines))
    return ScoreColumns(
        {(kind, split): own.values[split] for kind, own in kinds.items() for split in SPLITS},
        {kind: own.ids for kind, own in kinds.items()},
        explainers,
        by_id,
    )


class _Rows(NamedTuple):
    """A site's scores, a row each.

    Attributes:
        names: the explainers that there are.
        numbers: int64 `[rows]`, places in `names`.
        places: int64 `[rows]`, of the neurons among all.
        keys: int64 `[rows]`, the explanations' ids.
        columns: float64 `[rows]` each, by split.
        order: int64 `[rows]`, the rows with the best headlines last, of equals the latest.
    """

    names: list[Explainer]
    numbers: np.ndarray
    places: np.ndarray
    keys: np.ndarray
    columns: list[np.ndarray]
    order: np.ndarray

    @classmethod
    def of(cls, rows: list[Any], start: int, units: int) -> _Rows:
        """Of what `_ROWS` gives; raises LookupError for a neuron that there is not."""
        *named, unit_of, key_of, both, alone = zip(*rows, strict=True)
        known: dict[tuple[Any, ...], int] = {}
        numbers = np.fromiter(
            (known.setdefault(each, len(known)) for each in zip(*named, strict=True)),
            np.int64,
            len(rows),
        )
        places, keys = np.array(unit_of, np.int64), np.array(key_of, np.int64)
        if places.min() < 0 or places.max() >= units:
            raise IndexError(f"neuron {places.min() if places.min() < 0 else places.max()}")
        columns = [np.array(each, np.float64) for each in (both, alone)]  # None: NaN
        order = np.lexsort((keys, np.nan_to_num(columns[0], nan=-np.inf)))
        names = [Explainer(*each) for each in known]
        return cls(names, numbers, places + start, keys, columns, order)

    def put(self, into: Explained, names: list[Explainer]) -> None:
        """Put the rows of some explainers where they belong; the best comes last, and stays."""
        wanted = np.array([name in names for name in self.names])
        own = self.order[wanted[self.numbers[self.order]]]
        into.ids[self.places[own]] = self.keys[own]
        for split, column in zip(SPLITS, self.columns, strict=True):
            into.values[split][self.places[own]] = column[own]

    def headlines(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int64, and headlines, float32; NaN for none.

        A lookup explanation's table is left out where its text has a score of its own, or has none
        since that is undefined.
        """
        table, text = (
            np.array([name.judge == judge for name in self.names])[self.numbers]
            for judge in (LOOKUP, LIST)
        )
        own = ~(table & np.isin(self.keys, self.keys[text]))
        return self.keys[own], self.columns[0][own].astype(np.float32)
