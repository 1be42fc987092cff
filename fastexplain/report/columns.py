"""All neurons of a run as columns of float32: what pictures and lists of the whole run are made of.

`Run.table` has the same numbers in float64 with the names of all neurons, in seconds for a run of
300,000; here statistics come straight from the files, and scores site by site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastexplain.results import CORRELATION, LIST
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.reading import OF_TOP

KINDS = ("lookup", "list", "rule", "other")
"""Whose scores there are: the whole table's, its text's, rules', all others' of the top."""

SPLITS = ("top_and_random", "random_only")

_BLOCK = 256  # numbers of which the smallest is looked for first

# One row for each judge of an explanation.
_ROWS = f"""SELECT CASE WHEN NOT ({OF_TOP}) THEN -1
            WHEN e.method = 'lookup' THEN s.judge = '{LIST}'
            WHEN e.method = 'rule' AND e.model = 'rule' THEN 2 ELSE 3 END,
        e.unit, e.id, s.value, (SELECT value FROM scores WHERE explanation = e.id
            AND scorer = s.scorer AND judge = s.judge AND version = s.version
            AND split = '{SPLITS[1]}' AND measure = s.measure)
    FROM explanations e JOIN scores s ON s.explanation = e.id AND s.scorer = '{CORRELATION}'
        AND s.measure = '{CORRELATION}' AND s.split = '{SPLITS[0]}'
    WHERE e.site = ? AND e.text IS NOT NULL"""


@dataclass(frozen=True, eq=False)
class ScoreColumns:
    """The correlations of a run's explanations.

    Where a neuron has several explanations of a kind, or several judges of one, it is the one with
    the best headline that counts, and of equals the latest.

    Attributes:
        values: by `(kind, split)` of `KINDS` and `SPLITS`, float32 `[neurons]`; NaN where there is
            no score or it is undefined.
        ids: by kind, int64 `[neurons]`, the explanation's id in the database; 0 for none.
        headlines: float32 `[ids]`, by the ids of all explanations, of bottoms too, the best
            headline; NaN where there is none. Ids from its length on had none either.
    """

    values: Mapping[tuple[str, str], np.ndarray]
    ids: Mapping[str, np.ndarray]
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
    values = {(k, split): np.full(total, np.nan, np.float32) for k in KINDS for split in SPLITS}
    ids = {kind: np.zeros(total, np.int64) for kind in KINDS}
    keys, headlines = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    start = 0
    for site in run.sites.values():
        rows = database.query(_ROWS, (site.name,))
        end = start + site.units
        with database.understood():
            if rows:
                own = _fill(
                    {key: column[start:end] for key, column in values.items()},
                    {kind: column[start:end] for kind, column in ids.items()},
                    rows,
                )
                keys.append(own[0])
                headlines.append(own[1])
        start = end
    every = np.concatenate(keys)
    by_id = np.full(every.max(initial=0) + 1, np.nan, np.float32)
    np.fmax.at(by_id, every, np.concatenate(headlines))
    return ScoreColumns(values, ids, by_id)


def _fill(
    values: Mapping[tuple[str, str], np.ndarray], ids: Mapping[str, np.ndarray], rows: list[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Put a site's rows where they belong; raises LookupError for a neuron that there is not.

    Returns:
        The rows' ids, int64, and headlines, float32; NaN for none.
    """
    kinds, units, keys, *scores = zip(*rows, strict=True)
    kind_of, unit_of, key_of = (np.array(each, np.int64) for each in (kinds, units, keys))
    if unit_of.min() < 0:
        raise IndexError(f"neuron {unit_of.min()}")
    columns = [np.array(each, np.float64) for each in scores]  # None: NaN
    # The best comes last, and where places repeat it is the last that stays.
    order = np.lexsort((key_of, np.nan_to_num(columns[0], nan=-np.inf)))
    for number, kind in enumerate(KINDS):
        own = order[kind_of[order] == number]
        ids[kind][unit_of[own]] = key_of[own]
        for split, column in zip(SPLITS, columns, strict=True):
            values[kind, split][unit_of[own]] = column[own]
    return key_of, columns[0].astype(np.float32)
