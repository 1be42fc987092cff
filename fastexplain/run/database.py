"""The run's database: explanations, simulations and scores, in SQLite.

All writing goes through `Database`, each call in one transaction, so that what was stored stays
stored. Neurons are stored as layer and index.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fastexplain.errors import RunError, UsageError
from fastexplain.records import (
    ExplanationRow,
    LayerMeans,
    NeuronId,
    Scores,
    StoredExplanation,
    StoredSimulation,
)
from fastexplain.run.schema import MIGRATIONS, SELECT_EXPLANATIONS, read_explanation

# Seconds to wait for another process that is writing.
_PATIENCE = 30.0

_MEASURES = ("top_and_random", "random_only", "top_only")


class Database:
    """A run's `run.sqlite`, made or brought to this version when opened.

    Args:
        path: of the file.
        read_only: don't make one; where the directory can't be written, read it all the same.

    Raises:
        RunError: the file is no such database, is from a newer fastexplain, or can't be written.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self._path = Path(path)
        with self._errors():
            # Transactions are begun by hand: see `transaction`.
            self._sqlite = sqlite3.connect(
                self._source(read_only), timeout=_PATIENCE, isolation_level=None, uri=read_only
            )
            try:
                if not read_only or self._version() != len(MIGRATIONS):
                    self._prepare()
            except BaseException:
                self._sqlite.close()
                raise

    def _source(self, read_only: bool) -> str | Path:
        """What SQLite is to open; read-only, an empty database where there is none yet."""
        if not read_only:
            return self._path
        if not self._path.exists():
            return ":memory:"
        # Where no lock can be taken, nothing can be written either: it is read as it stands.
        mode = "mode=rw" if os.access(self._path.parent, os.W_OK) else "immutable=1"
        return f"{self._path.resolve().as_uri()}?{mode}"

    def close(self) -> None:
        self._sqlite.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_explanations(self, rows: Sequence[ExplanationRow]) -> list[int]:
        """Store explanations, and their scores where they have any; returns their ids.

        A row replaces the neuron's former ones by the same explainer and version, or, if it is a
        lookup, by any lookup; simulations and scores of those go too. One without text replaces
        only others without. A language model that says the same again adds nothing: the former row
        stays, with what hangs on it.
        """
        created = now()
        with self.transaction():
            if len(rows) == 1 and (former := self._said_before(rows[0])) is not None:
                return [former]
            self._sqlite.executemany(
                """DELETE FROM explanations WHERE layer = ? AND neuron = ? AND method = ?
                    AND (method = 'lookup' OR (model = ? AND version = ?))
                    AND (? OR text IS NULL)""",
                [
                    (*_place(r.neuron), r.method, r.model, r.version, r.text is not None)
                    for r in rows
                ],
            )
            [(last,)] = self._sqlite.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'explanations'"
            )
            ids = list(range(last + 1, last + 1 + len(rows)))
            self._sqlite.executemany(
                f"INSERT INTO explanations VALUES ({', '.join('?' * 11)})",
                (
                    (
                        i,
                        *_place(r.neuron),
                        *(r.method, r.model, r.version, r.text, r.failure),
                        *(json.dumps(r.data), json.dumps(r.parameters), created),
                    )
                    for i, r in zip(ids, rows, strict=True)
                ),
            )
            self._insert_scores(
                (i, r.model, r.version, r.scores, created)
                for i, r in zip(ids, rows, strict=True)
                if r.scores is not None
            )
        return ids

    def _said_before(self, row: ExplanationRow) -> int | None:
        if row.method != "llm" or row.text is None:
            return None
        found = self._sqlite.execute(
            """SELECT id FROM explanations WHERE layer = ? AND neuron = ? AND method = 'llm'
                AND model = ? AND version = ? AND text = ?""",
            (*_place(row.neuron), row.model, row.version, row.text),
        ).fetchone()
        return None if found is None else found[0]

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
        with self.transaction():
            self._sqlite.execute(
                """INSERT OR REPLACE INTO simulations
                SELECT id, ?, ?, ?, ?, ?, ?, ? FROM explanations WHERE id = ?""",
                (simulator, version, excerpt, split, blob, failure, now(), explanation),
            )

    def add_scores(self, explanation: int, simulator: str, version: str, scores: Scores) -> None:
        """Store an explanation's scores by one simulator, in place of its former ones.

        Nothing is stored if another command has replaced the explanation.
        """
        with self.transaction():
            self._insert_scores([(explanation, simulator, version, scores, now())])

    def scores(self, explanation: int, simulator: str, version: str) -> Scores | None:
        """An explanation's scores by one simulator, if it has any."""
        columns = ", ".join(Scores.__dataclass_fields__)
        rows = self.query(
            f"""SELECT {columns} FROM scores
            WHERE explanation = ? AND simulator = ? AND version = ?""",
            (explanation, simulator, version),
        )
        return Scores(*rows[0]) if rows else None

    def explanations(self, neuron: NeuronId) -> list[StoredExplanation]:
        """All explanations of a neuron, lookup first, then newest first.

        One that was scored in several ways, by simulator, mode or readout, comes once for each.
        """
        return self._read(
            "WHERE e.layer = ? AND e.neuron = ? "
            "ORDER BY e.method = 'lookup' DESC, e.id DESC, s.simulator, s.version",
            _place(neuron),
        )

    def explained(self, method: str, version: str) -> int:
        """How many neurons are explained by "lookup" or "llm", in this version of it."""
        with self._errors():
            [(count,)] = self._sqlite.execute(
                """SELECT count(DISTINCT layer * 1000000000 + neuron) FROM explanations
                WHERE method = ? AND version = ? AND text IS NOT NULL""",
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
        """The explanations with the highest scores.

        Args:
            limit: how many at most.
            method: "lookup" or "llm"; both if None.
            by: "top_and_random", "random_only" or "top_only". Undefined scores are left out.
            layer: only of this one; of all if None.
            model: only by this explainer; by all if None.

        Raises:
            UsageError: there is no such score.
        """
        if by not in _MEASURES:
            raise UsageError(f"there is no score '{by}'; choose one of {', '.join(_MEASURES)}")
        return self._read(
            f"WHERE s.{by} IS NOT NULL AND (? IS NULL OR e.method = ?) "
            f"AND (? IS NULL OR e.layer = ?) AND (? IS NULL OR e.model = ?) "
            f"ORDER BY s.{by} DESC, e.layer, e.neuron LIMIT ?",
            (method, method, layer, layer, model, model, limit),
        )

    def layer_means(self, method: str) -> list[LayerMeans]:
        """Per layer the mean scores of all neurons explained by "lookup" or "llm"."""
        with self._errors():
            rows = self._sqlite.execute(
                """SELECT e.layer, count(DISTINCT e.neuron), avg(s.random_only),
                    avg(s.top_and_random), avg(s.top_only)
                FROM explanations e JOIN scores s ON s.explanation = e.id
                WHERE e.method = ? GROUP BY e.layer ORDER BY e.layer""",
                (method,),
            ).fetchall()
        return [LayerMeans(*row) for row in rows]

    def find_explanation(
        self, neuron: NeuronId, method: str, model: str, version: str
    ) -> tuple[int, str] | None:
        """Id and text of a neuron's explanation by one explainer, unless it failed."""
        with self._errors():
            return self._sqlite.execute(
                """SELECT id, text FROM explanations WHERE layer = ? AND neuron = ?
                    AND method = ? AND model = ? AND version = ? AND text IS NOT NULL
                ORDER BY id DESC""",
                (*_place(neuron), method, model, version),
            ).fetchone()

    def simulations(self, explanation: int) -> list[StoredSimulation]:
        """What simulators predicted from an explanation, failures included."""
        with self._errors():
            rows = self._sqlite.execute(
                """SELECT simulator, version, excerpt, split, activations, failure FROM simulations
                WHERE explanation = ? ORDER BY simulator, version, excerpt""",
                (explanation,),
            ).fetchall()
        return [
            StoredSimulation(simulator, version, excerpt, split, _values(blob), failure)
            for simulator, version, excerpt, split, blob, failure in rows
        ]

    def simulated(self, explanation: int, simulator: str, version: str) -> dict[int, np.ndarray]:
        """Values by excerpt id, float32 `[tokens]`, without those that failed."""
        with self._errors():
            rows = self._sqlite.execute(
                """SELECT excerpt, activations FROM simulations
                WHERE explanation = ? AND simulator = ? AND version = ?
                    AND activations IS NOT NULL""",
                (explanation, simulator, version),
            ).fetchall()
        return {excerpt: np.frombuffer(blob, dtype="<f4") for excerpt, blob in rows}

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        with self._errors():
            return self._sqlite.execute(statement, values).fetchall()

    def _read(self, rest: str, values: tuple[Any, ...]) -> list[StoredExplanation]:
        with self._errors():
            rows = self._sqlite.execute(SELECT_EXPLANATIONS + rest, values).fetchall()
        return [read_explanation(row) for row in rows]

    def _insert_scores(self, rows: Any) -> None:
        self._sqlite.executemany(
            """INSERT OR REPLACE INTO scores
            SELECT id, ?, ?, ?, ?, ?, ?, ?, ? FROM explanations WHERE id = ?""",
            (
                (
                    *(simulator, version, s.random_only, s.top_and_random, s.top_only),
                    *(s.excerpts_random, s.excerpts_top, created, explanation),
                )
                for explanation, simulator, version, s, created in rows
            ),
        )

    def _prepare(self) -> None:
        self._sqlite.execute("PRAGMA journal_mode = WAL")
        # A commit then survives the process, if not a power cut, at a fraction of the time.
        self._sqlite.execute("PRAGMA synchronous = NORMAL")
        self._sqlite.execute("PRAGMA foreign_keys = ON")
        if self._version() == len(MIGRATIONS):
            return
        with self.transaction():
            # Asked again, now that nobody else can be migrating it.
            version = self._version()
            if version > len(MIGRATIONS):
                raise RunError(f"{self._path} is from a newer fastexplain; update this one")
            for statement in (s for migration in MIGRATIONS[version:] for s in migration):
                self._sqlite.execute(statement)
            self._sqlite.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        return self._sqlite.execute("PRAGMA user_version").fetchone()[0]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all that is executed on what it gives is kept, or nothing."""
        with self._errors():
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield self._sqlite
                self._sqlite.execute("COMMIT")
            except BaseException:
                if self._sqlite.in_transaction:  # SQLite has ended it itself where a disk is full
                    self._sqlite.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise RunError(f"the database {self._path} can't be used: {error}") from error


def _place(neuron: NeuronId) -> tuple[int, int]:
    return neuron.layer, neuron.index


def _values(blob: bytes | None) -> np.ndarray | None:
    return None if blob is None else np.frombuffer(blob, dtype="<f4")


def now(timespec: str = "seconds") -> str:
    """The time, in UTC and ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=timespec)
