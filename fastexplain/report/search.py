"""Search as one types: neurons by name, neurons by token, explanations by their text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.search import best_explanation, headline, worth
from fastexplain.finding.single_tokens import form
from fastexplain.records import NeuronId
from fastexplain.report.columns import by_site, first_places, name_at
from fastexplain.results import StoredExplanation
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

_NAME = re.compile(r"(\d{1,9}(?:\.\w+)?):(\d{0,9})", re.ASCII)

# Words of a query that are looked for. What comes behind is left out: nobody types more.
_LONGEST, _MOST_WORDS = 200, 12

# A last word from this many letters on also stands for what begins with it.
_PREFIX = 2

# Matches up to which words count: ranking by them reads every one, and takes 0.1 s for 46,000.
_RANKED = 1000

# Counted tokens from which a mean over a token is shown.
_FEWEST = 5


def search_data(
    run: Run,
    database: Database,
    tokens: TokenSearch,
    headlines: np.ndarray | None,
    text: str,
    limit: int,
) -> dict[str, Any]:
    """What is found for a text, which may be anything.

    Explanations are in order of their headline times how well their words fit (bm25); where a word
    is frequent, of their headline alone.

    Args:
        headlines: see `columns.ScoreColumns`; None while they are not known.
        limit: so many of each at most.

    Returns:
        `neurons`: names that begin with the text, as in `5:13`; where there are any, nothing else.
        `token`: None where the text is no token of the tables, else `text`, `count` (counted tokens
        of the corpus) and `neurons`, each with `neuron`, `told` (see `TokenSearch`) and `mean`.
        `explanations`: each with `neuron`, `method`, `model`, `text` and `score` (the headline or
        None), one a neuron; `more`, whether there may be others; `ranked`, whether the best is
        first, or the latest, since there are many and their headlines are not known yet.

    Raises:
        RunError: a file or the database is damaged.
    """
    text = text[:_LONGEST]
    names = _names(run, text.strip(), limit)
    if names:  # whose numbers are not meant as words
        return {
            **{"neurons": names, "token": None},
            **{"explanations": [], "more": False, "ranked": True},
        }
    found, ranked = _matches(database, headlines, text, 3 * limit)
    rows = _explanations(database, found)
    return {
        "neurons": [],
        "token": tokens.find(text, limit),
        "explanations": rows[:limit],
        "more": len(rows) > limit or len(found) == 3 * limit,
        "ranked": ranked,
    }


def explanations_with(
    database: Database, headlines: np.ndarray | None, words: str, limit: int
) -> list[StoredExplanation]:
    """The explanations that have all of some words, or forms of them, ordered as by `search_data`.

    One that was scored in several ways comes with its best score; there are no prefixes.

    Args:
        headlines: see `columns.ScoreColumns`; None for an order by how well the words fit.

    Raises:
        UsageError: there is no word.
        RunError: the database is damaged.
    """
    if not re.search(r"\w", words):
        raise UsageError("name a word to search for")
    found, _ = _matches(database, headlines, f"{words[:_LONGEST]} ", limit)
    return database.with_best_scores(found)


def glance_data(run: Run, database: Database, name: str) -> dict[str, Any]:
    """A neuron's best explanation, in a line.

    Returns:
        `neuron`, and `method`, `model`, `text` and `score`; None where there is none.

    Raises:
        UsageError: there is no such neuron.
        RunError: the database is damaged.
    """
    neuron = run.check(NeuronId.parse(name))
    row = best_explanation(database.explanations(neuron))
    if row is None:
        return {"neuron": str(neuron)} | dict.fromkeys(("method", "model", "text", "score"))
    return _line(row)


_QUOTED = re.compile(r"""\s*(['"])(.+)\1\s*""", re.DOTALL)


class TokenSearch:
    """Which neurons a token drives most, from the tables.

    A neuron's correlation over the corpus of max(activation, 0) with whether the token is of that
    form (see `finding.single_tokens.by_form`) says how much of the neuron the token tells.

    Args:
        statistics: see `columns.statistic_columns`.
    """

    def __init__(self, run: Run, statistics: Mapping[str, np.ndarray]) -> None:
        self._run = run
        self._mean = by_site(run, statistics["mean_positive"])
        deviation = np.sqrt(statistics["variance"].astype(np.float64))
        self._deviation = by_site(run, deviation)

    def find(self, text: str, limit: int) -> dict[str, Any] | None:
        """See `search_data`; case, spaces around and quotes, as in lists, do not matter."""
        quoted = _QUOTED.fullmatch(text)
        if quoted and form(text, -1) not in self._rows:
            text = quoted[2]
        rows = self._rows.get(form(text, -1))
        if rows is None:
            return None
        count = int(self._run.tables.token_counts[rows].sum())
        if count < _FEWEST:
            return None
        pairs = [self._site(site, rows, count) for site in self._run.sites]
        told, mean = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        order = first_places(limit, np.where(told > 0, -told, np.nan))
        neurons = [
            {
                "neuron": name_at(self._run, at),
                "told": float(told[at]),
                "mean": float(mean[at]),
            }
            for at in order.tolist()
        ]
        return {"text": form(text, -1), "count": count, "neurons": neurons}

    def _site(self, site: str, rows: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """How much the token tells, and the mean over it, float64 `[neurons]`."""
        # Of an expert's tokens the share is not known; the corpus's serves.
        share = min(count / self._run.sites[site].counted_tokens, 0.5)
        table = self._run.file(site)
        sums = sum(table.read("tables.tokens", (row,)) for row in rows)
        mean = np.asarray(sums, np.float64) / count
        rise = (mean - self._mean[site]) * np.sqrt(share / (1 - share))
        deviation = self._deviation[site]
        return np.divide(rise, deviation, out=np.zeros_like(mean), where=deviation > 0), mean

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """The tables' rows of each form of a token."""
        found: dict[str, list[int]] = {}
        for row, token in enumerate(self._run.tables.tokens.tolist()):
            found.setdefault(form(self._run.token_text(token), token), []).append(row)
        return found


def _names(run: Run, text: str, limit: int) -> list[str]:
    """Neurons whose names begin with a text that has a colon, in order of their index."""
    match = _NAME.fullmatch(text)
    if match is None or match[1] not in run.sites:
        return []
    site, digits = match.groups()
    units = run.sites[site].units
    if not digits:
        return [f"{site}:{index}" for index in range(min(limit, units))]
    if len(digits) > 1 and digits.startswith("0"):
        return []
    found: list[int] = []
    for zeros in range(len(str(units))):
        first = int(digits) * 10**zeros
        found += range(first, min(first + (10**zeros if int(digits) else 1), units))
        if len(found) >= limit or not int(digits):
            break
    return [f"{site}:{index}" for index in found[:limit]]


def _matches(
    database: Database, headlines: np.ndarray | None, text: str, limit: int
) -> tuple[list[int], bool]:
    """Ids of the explanations that have all words of a text, and whether they are ranked."""
    # Only letters, digits and underscores are left: nothing that the query's language knows.
    words = re.findall(r"\w+", text)[:_MOST_WORDS]
    if not words:
        return [], True
    quoted = " ".join(f'"{word}"' for word in words)
    if text[-1:] == words[-1][-1] and len(words[-1]) >= _PREFIX:
        quoted += "*"
    match = "FROM explanations_text WHERE explanations_text MATCH ?"
    # As one text: rows of 100,000 numbers take Python three times as long.
    [(joined,)] = database.query(f"SELECT group_concat(rowid) {match}", (quoted,))
    ids = np.fromstring(joined or "", np.int64, sep=",")
    if len(ids) < _RANKED:
        rows = database.query(f"SELECT rowid, rank {match}", (quoted,))
        ids, fits = np.array([key for key, _ in rows], np.int64), [own for _, own in rows]
        worth = 1 + np.nan_to_num(np.maximum(_headlines(headlines, ids), 0))
        keys = np.array(fits) * worth  # SQLite's ranks are below 0
    elif headlines is None:
        return np.sort(ids)[: -limit - 1 : -1].tolist(), False
    else:
        keys = np.nan_to_num(-_headlines(headlines, ids), nan=2.0)  # behind the worst, which has 1
    return ids[first_places(limit, keys)].tolist(), True


def _headlines(known: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
    """The headlines of explanations, float32; NaN where there is none."""
    found = np.full(len(ids), np.nan, np.float32)
    if known is not None:
        there = ids < len(known)
        found[there] = known[ids[there]]
    return found


def _explanations(database: Database, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The explanations of these ids that are still there, in their order, the first of a neuron.

    One that was scored in several ways has its best score, as in `glance_data`.
    """
    best: dict[int, StoredExplanation] = {}
    for row in database.explanations_by_id(ids):
        best[row.id] = max(best.get(row.id, row), row, key=worth)
    found: dict[NeuronId, dict[str, Any]] = {}
    for row in (best[key] for key in ids if key in best):
        found.setdefault(row.neuron, _line(row))
    return list(found.values())


def _line(row: StoredExplanation) -> dict[str, Any]:
    """An explanation as it is listed."""
    own = {"method": row.method, "model": row.model, "text": row.text, "score": headline(row)}
    return {"neuron": str(row.neuron)} | own
