"""The run's database: explanations, simulations and scores, in SQLite.

Every method that writes does so in a transaction, so that what was stored stays stored.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, LIST, ExplanationRow, Mean, Measured, Steering
from fastexplain.run.listing import Listing
from fastexplain.run.rows import hash_rows

# The hash is taken with the insertion, of numbers as the columns hold them: real, and without the
# sign of -0.0, which SQLite stores as 0.
_SCORE = ", ".join(f"CAST(?{n} AS REAL) + 0.0" if n in (7, 8, 9) else f"?{n}" for n in range(1, 13))
_INSERT_SCORE = f"""INSERT OR REPLACE INTO scores SELECT {_SCORE}, row_hash({_SCORE})
    WHERE EXISTS (SELECT 1 FROM explanations WHERE id = ?1)"""


class Database(Listing):
    """A run's `run.sqlite`; see `Connections` for how it is opened and written.

    All methods raise RunError where the file can't be used.
    """

    def add_explanations(self, rows: Sequence[ExplanationRow]) -> list[int]:
        """Store explanations, and their scores where they have any; returns their ids.

        An explanation that is there already, by the same method, model and version and with the
        same text, is kept with its simulations and scores. Others of the unit that were stored
        before by the same method, model and version are replaced; by lookup, and by this
        package's rules, there is one for a unit. A row without text replaces only others without.
        """
        created = now()
        with self.transaction() as sqlite:
            sqlite.executemany(
                """DELETE FROM explanations WHERE site = ?1 AND unit = ?2 AND method = ?3
                    AND (method = 'lookup' OR (model = ?4
                        AND (version = ?5 OR (method = 'rule' AND model = 'rule'))))
                    AND (?6 IS NOT NULL OR text IS NULL)
                    AND coalesce(NOT (model = ?4 AND version = ?5 AND text = ?6), 1)""",
                map(_key, rows),
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
                f"INSERT INTO explanations VALUES ({', '.join('?' * 12)}, NULL)",
                (
                    (
                        *(kept[key], *key[:6], r.failure),
                        *(json.dumps(r.data), json.dumps(r.parameters), r.parent, created),
                    )
                    for key, r in added.items()
                ),
            )
            sqlite.executemany(hash_rows("explanations", "id = ?"), ((kept[key],) for key in added))
            _insert_scores(
                sqlite,
                (
                    (kept[_key(r)], CORRELATION, judge, r.version, m)
                    for r in rows
                    for judge, scores in ((r.model, r.scores), (LIST, r.text_scores))
                    if scores is not None
                    for m in scores.measured()
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
                SELECT id, ?, ?, ?, ?, ?, ?, ?, NULL FROM explanations WHERE id = ?""",
                (simulator, version, excerpt, split, blob, failure, now(), explanation),
            )
            sqlite.execute(
                hash_rows("simulations", "explanation = ? AND hash IS NULL"), (explanation,)
            )

    def add_scores(
        self,
        scorer: str,
        judge: str,
        version: str,
        measured: Mapping[int, Sequence[Measured]],
    ) -> None:
        """Store what a scorer gives explanations, in place of what it gave them before.

        Nothing is stored of one that another command has replaced.

        Args:
            scorer, judge, version: as in `Score`.
            measured: by the explanation's id.
        """
        with self.transaction() as sqlite:
            _insert_scores(
                sqlite,
                (
                    (explanation, scorer, judge, version, each)
                    for explanation, rows in measured.items()
                    for each in rows
                ),
                now(),
            )

    def add_means(self, method: str, scorer: str, means: Sequence[Mean]) -> None:
        """Store means over neurons of what a scorer gave, in place of those that were there."""
        created = now()
        with self.transaction() as sqlite:
            sqlite.execute("DELETE FROM means WHERE method = ? AND scorer = ?", (method, scorer))
            sqlite.executemany(
                f"INSERT INTO means VALUES ({', '.join('?' * 10)})",
                ((method, scorer, *mean, created) for mean in means),
            )

    def add_steering(self, neuron: NeuronId, steps: Sequence[Steering]) -> None:
        """Store what raising a neuron does, in place of what was stored before."""
        with self.transaction() as sqlite:
            sqlite.execute(
                "INSERT OR REPLACE INTO steering VALUES (?, ?, ?, ?, NULL)",
                (neuron.site, neuron.index, json.dumps(steps), now()),
            )
            sqlite.execute(
                hash_rows("steering", "site = ? AND unit = ?"), (neuron.site, neuron.index)
            )


def _key(row: ExplanationRow) -> tuple[Any, ...]:
    """What makes two explanations the same."""
    return (row.neuron.site, row.neuron.index, row.method, row.model, row.version, row.text)


def _insert_scores(
    sqlite: sqlite3.Connection,
    rows: Iterable[tuple[int, str, str, str, Measured]],
    created: str,
) -> None:
    """Store scores of explanations that are there; others are left out."""
    sqlite.executemany(
        _INSERT_SCORE,
        (
            (*row, m.split, m.measure, m.value, m.low, m.high, m.excerpts, m.reason, created)
            for *row, m in rows
        ),
    )


def now(timespec: str = "seconds") -> str:
    """The time, in UTC and ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=timespec)
