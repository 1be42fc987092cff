"""The run's database: explanations, simulations and scores, in SQLite.

Every method that writes does so in a transaction, so that what was stored stays stored.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.records import (
    CORRELATION,
    ExplanationRow,
    LayerMeans,
    Measured,
    NeuronId,
    Score,
    Scores,
    StoredExplanation,
    StoredSimulation,
)
from fastexplain.run.connections import Connections

_SPLITS = ("top_and_random", "random_only", "top_only")

# A column of the row that has a judge's correlation over another split.
_OTHER = (
    "(SELECT {} FROM scores WHERE explanation = e.id AND scorer = s.scorer AND judge = s.judge "
    "AND version = s.version AND measure = s.measure AND split = '{}')"
)

# An explanation's scores by one judge are three rows, which make one `Scores`.
_SELECT = f"""
    SELECT e.id, e.site, e.unit, e.method, e.model, e.version, e.text, e.failure, e.data,
        e.parameters, e.parent, e.created, s.judge, s.version, r.cost,
        {_OTHER.format("value", "random_only")}, s.value, {_OTHER.format("value", "top_only")},
        {_OTHER.format("excerpts", "random_only")}, {_OTHER.format("excerpts", "top_only")}
    FROM explanations e
        LEFT JOIN scores s ON s.explanation = e.id AND s.scorer = '{CORRELATION}'
            AND s.measure = '{CORRELATION}' AND s.split = 'top_and_random'
        LEFT JOIN responses r ON r.request = json_extract(e.parameters, '$.request')
"""


class Database(Connections):
    """A run's `run.sqlite`; see `Connections` for how it is opened and written.

    All methods raise RunError where the file can't be used.
    """

    def add_explanations(self, rows: Sequence[ExplanationRow]) -> list[int]:
        """Store explanations, and their scores where they have any; returns their ids.

        An explanation that is there already, by the same method, model and version and with the
        same text, is kept with its simulations and scores. Others of the unit that were stored
        before by the same method, model and version are replaced; by the method "lookup" there is
        one for a unit. A row without text replaces only others without.
        """
        created = now()
        with self.transaction() as sqlite:
            sqlite.executemany(
                """DELETE FROM explanations WHERE site = ? AND unit = ? AND method = ?
                    AND (? OR (model = ? AND version = ?)) AND (? OR text IS NULL)
                    AND coalesce(NOT (model = ? AND version = ? AND text = ?), 1)""",
                (
                    (
                        *(*_place(r.neuron), r.method, r.method == "lookup", r.model, r.version),
                        *(r.text is not None, r.model, r.version, r.text),
                    )
                    for r in rows
                ),
            )
            kept = self._kept(rows)
            [(last,)] = sqlite.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'explanations'"
            )
            added: dict[tuple[Any, ...], ExplanationRow] = {}
            for row in rows:
                if _key(row) not in kept:
                    last += 1
                    kept[_key(row)] = last
                    added[_key(row)] = row
            sqlite.executemany(
                f"INSERT INTO explanations VALUES ({', '.join('?' * 12)})",
                (
                    (
                        *(kept[key], *key[:6], r.failure),
                        *(json.dumps(r.data), json.dumps(r.parameters), r.parent, created),
                    )
                    for key, r in added.items()
                ),
            )
            _insert_scores(
                sqlite,
                (
                    (kept[_key(r)], CORRELATION, r.model, r.version, m)
                    for r in rows
                    if r.scores is not None
                    for m in r.scores.measured()
                ),
                created,
            )
        return [kept[_key(row)] for row in rows]

    def _kept(self, rows: Sequence[ExplanationRow]) -> dict[tuple[Any, ...], int]:
        """Ids of explanations that are stored already, by `_key`."""
        places = {(row.neuron.site, row.method) for row in rows}
        found: dict[tuple[Any, ...], int] = {}
        for site, method in places:
            units = [r.neuron.index for r in rows if (r.neuron.site, r.method) == (site, method)]
            stored = self.query(
                """SELECT site, unit, method, model, version, text, id FROM explanations
                WHERE site = ? AND unit BETWEEN ? AND ? AND method = ? AND text IS NOT NULL""",
                (site, min(units), max(units), method),
            )
            found |= {tuple(key): number for *key, number in stored}
        return found

    def add_simulation(
        self,
        explanation: int,
        simulator: str,
        version: str,
        excerpt: int,
        split: str,
        values: np.ndarray | None,
        failure: str | None = None,
    ) -> None:
        """Store a simulated excerpt: values `[tokens]` with NaN as missing, or why it failed.

        Nothing is stored if another command has replaced the explanation.
        """
        blob = None if values is None else np.asarray(values, dtype="<f4").tobytes()
        with self.transaction() as sqlite:
            sqlite.execute(
                """INSERT OR REPLACE INTO simulations
                SELECT id, ?, ?, ?, ?, ?, ?, ? FROM explanations WHERE id = ?""",
                (simulator, version, excerpt, split, blob, failure, now(), explanation),
            )

    def add_scores(
        self,
        explanation: int,
        scorer: str,
        judge: str,
        version: str,
        measured: Sequence[Measured],
    ) -> None:
        """Store what a scorer gives an explanation, in place of what it gave before.

        Nothing is stored if another command has replaced the explanation.

        Args:
            scorer, judge, version: as in `Score`.
        """
        with self.transaction() as sqlite:
            rows = ((explanation, scorer, judge, version, each) for each in measured)
            _insert_scores(sqlite, rows, now())

    def scores(self, explanation: int) -> list[Score]:
        """All scores of an explanation, in order of scorer, judge, version, split and measure."""
        rows = self.query(
            """SELECT scorer, judge, version, split, measure, value, excerpts, low, high, reason
            FROM scores WHERE explanation = ?""",
            (explanation,),
        )
        return [
            Score(scorer, judge, version, Measured(*measured))
            for scorer, judge, version, *measured in rows
        ]

    def explanations(self, neuron: NeuronId) -> list[StoredExplanation]:
        """All explanations of a neuron, lookup first, then newest first.

        One whose simulations were scored in several ways, by simulator, mode or readout, comes once
        for each.
        """
        return self._read(
            "WHERE e.site = ? AND e.unit = ? "
            "ORDER BY e.method = 'lookup' DESC, e.id DESC, s.judge, s.version",
            _place(neuron),
        )

    def search(self, words: str, limit: int = 20) -> list[StoredExplanation]:
        """The explanations that have all of these words, or forms of them, best match first.

        One that was scored in several ways comes with its best score.

        Raises:
            UsageError: there is no word.
        """
        quoted = " ".join(f'"{word}"' for word in words.replace('"', " ").split())
        if not quoted:
            raise UsageError("name a word to search for")
        found = self.query(
            """SELECT rowid FROM explanations_text WHERE explanations_text MATCH ?
            ORDER BY rank, rowid LIMIT ?""",
            (quoted, limit),
        )
        return [
            row
            for key in found
            for row in self._read("WHERE e.id = ? ORDER BY s.value DESC NULLS LAST LIMIT 1", key)
        ]

    def methods(self) -> list[str]:
        """The methods by which there are explanations, in alphabetical order."""
        return [
            name for (name,) in self.query("SELECT DISTINCT method FROM explanations ORDER BY 1")
        ]

    def explained(self, method: str, version: str) -> int:
        """How many neurons are explained by a method, in this version of it."""
        [(count,)] = self.query(
            """SELECT count(*) FROM (SELECT DISTINCT site, unit FROM explanations
            WHERE method = ? AND version = ? AND text IS NOT NULL)""",
            (method, version),
        )
        return count

    def best(
        self,
        limit: int = 20,
        method: str | None = None,
        by: str = "top_and_random",
        layer: int | None = None,
        model: str | None = None,
    ) -> list[StoredExplanation]:
        """The explanations with the highest correlations.

        Args:
            limit: how many at most.
            method: such as "lookup"; all if None.
            by: "top_and_random", "random_only" or "top_only". Undefined scores are left out.
            layer: only of this one; of all if None.
            model: only by this explainer; by all if None.

        Raises:
            UsageError: there is no such score.
        """
        if by not in _SPLITS:
            raise UsageError(f"there is no score '{by}'; choose one of {', '.join(_SPLITS)}")
        return self._read(
            f"""JOIN scores b ON b.explanation = e.id AND b.scorer = '{CORRELATION}'
                AND b.measure = '{CORRELATION}' AND b.split = '{by}'
                AND b.judge = s.judge AND b.version = s.version
            WHERE b.value IS NOT NULL AND (? IS NULL OR e.method = ?)
                AND (? IS NULL OR e.layer = ?) AND (? IS NULL OR e.model = ?)
            ORDER BY b.value DESC, e.layer, e.site, e.unit LIMIT ?""",
            (method, method, layer, layer, model, model, limit),
        )

    def layer_means(self, method: str) -> list[LayerMeans]:
        """Per layer the mean correlations of all neurons explained by a method."""
        means = ", ".join(
            f"avg(s.value) FILTER (WHERE s.split = '{split}')"
            for split in ("random_only", "top_and_random", "top_only")
        )
        rows = self.query(
            f"""SELECT e.layer, count(DISTINCT e.site || ':' || e.unit), {means}
            FROM explanations e JOIN scores s ON s.explanation = e.id
                AND s.scorer = '{CORRELATION}' AND s.measure = '{CORRELATION}'
            WHERE e.method = ? GROUP BY e.layer ORDER BY e.layer""",
            (method,),
        )
        return [LayerMeans(*row) for row in rows]

    def layer_scores(
        self, layer: int, *, lookup: bool
    ) -> list[tuple[int, float | None, float | None]]:
        """The correlations of a layer's MLP neurons, oldest first, so that the last one counts.

        Args:
            lookup: of explanations by lookup; else of those by other methods.

        Returns:
            Index, correlation over top and random excerpts, and over random ones, for each
            explanation and judge; None where they are undefined or there are none.
        """
        other = _OTHER.format("value", "random_only")
        return self.query(
            f"""SELECT e.unit, s.value, {other}
            FROM explanations e LEFT JOIN scores s ON s.explanation = e.id
                AND s.scorer = '{CORRELATION}' AND s.measure = '{CORRELATION}'
                AND s.split = 'top_and_random'
            WHERE e.site = ? AND (e.method = 'lookup') = ? AND e.text IS NOT NULL
            ORDER BY e.id, s.created, s.judge, s.version""",
            (str(layer), lookup),
        )

    def correlations(self) -> list[tuple[str, str, int, float | None, float | None, float | None]]:
        """The correlations of all explanations, those with the best headline last.

        Returns:
            Method, site, index, correlation over top and random excerpts, over random ones and over
            top ones, for each explanation and judge. None where they are undefined.
        """
        return self.query(
            f"""SELECT e.method, e.site, e.unit, s.value, {_OTHER.format("value", "random_only")},
                {_OTHER.format("value", "top_only")}
            FROM explanations e JOIN scores s ON s.explanation = e.id
                AND s.scorer = '{CORRELATION}' AND s.measure = '{CORRELATION}'
                AND s.split = 'top_and_random'
            ORDER BY s.value NULLS FIRST, s.created, e.id"""
        )

    def find_explanation(
        self, neuron: NeuronId, method: str, model: str, version: str
    ) -> tuple[int, str] | None:
        """Id and text of a neuron's explanation by one explainer, unless it failed."""
        rows = self.query(
            """SELECT id, text FROM explanations WHERE site = ? AND unit = ?
                AND method = ? AND model = ? AND version = ? AND text IS NOT NULL
            ORDER BY id DESC LIMIT 1""",
            (*_place(neuron), method, model, version),
        )
        return rows[0] if rows else None

    def simulations(self, explanation: int) -> list[StoredSimulation]:
        """What simulators predicted from an explanation, failures included."""
        rows = self.query(
            """SELECT simulator, version, excerpt, split, activations, failure FROM simulations
            WHERE explanation = ? ORDER BY simulator, version, excerpt""",
            (explanation,),
        )
        return [
            StoredSimulation(simulator, version, excerpt, split, _values(blob), failure)
            for simulator, version, excerpt, split, blob, failure in rows
        ]

    def simulated(self, explanation: int, simulator: str, version: str) -> dict[int, np.ndarray]:
        """Values by excerpt id, float32 `[tokens]`, without those that failed."""
        rows = self.query(
            """SELECT excerpt, activations FROM simulations
            WHERE explanation = ? AND simulator = ? AND version = ? AND activations IS NOT NULL""",
            (explanation, simulator, version),
        )
        return {excerpt: np.frombuffer(blob, dtype="<f4") for excerpt, blob in rows}

    def _read(self, rest: str, values: tuple[Any, ...]) -> list[StoredExplanation]:
        return [_explanation(row) for row in self.query(_SELECT + rest, values)]


def _key(row: ExplanationRow) -> tuple[Any, ...]:
    """What makes two explanations the same."""
    return (*_place(row.neuron), row.method, row.model, row.version, row.text)


def _insert_scores(
    sqlite: sqlite3.Connection,
    rows: Iterable[tuple[int, str, str, str, Measured]],
    created: str,
) -> None:
    """Store scores of explanations that are there; others are left out."""
    sqlite.executemany(
        """INSERT OR REPLACE INTO scores SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
        WHERE EXISTS (SELECT 1 FROM explanations WHERE id = ?1)""",
        (
            (*row, m.split, m.measure, m.value, m.low, m.high, m.excerpts, m.reason, created)
            for *row, m in rows
        ),
    )


def _explanation(row: tuple[Any, ...]) -> StoredExplanation:
    """A row of `_SELECT`."""
    key, site, unit, method, model, version, text, failure, data, parameters, parent, created = row[
        :12
    ]
    simulator, simulation, cost, *scores = row[12:]
    return StoredExplanation(
        NeuronId.of(site, unit),
        method,
        model,
        version,
        text,
        json.loads(data),
        json.loads(parameters),
        failure,
        None if simulator is None else Scores(*scores),
        parent,
        key,
        created,
        simulator,
        simulation,
        cost,
    )


def _place(neuron: NeuronId) -> tuple[str, int]:
    return neuron.site, neuron.index


def _values(blob: bytes | None) -> np.ndarray | None:
    return None if blob is None else np.frombuffer(blob, dtype="<f4")


def now(timespec: str = "seconds") -> str:
    """The time, in UTC and ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=timespec)
