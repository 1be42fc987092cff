"""The run's database: explanations, simulations and scores, in SQLite.

All writing goes through `Database`, in transactions, so that what was stored stays stored. Every
thread has a connection of its own. `Database.write` hands a call to one thread that writes, which
puts all calls that have come meanwhile into one transaction: an event loop does not wait for the
disk, and a thousand answers a second take a few dozen transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from fastexplain.errors import RunError, UsageError
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
from fastexplain.run.migrations import MIGRATIONS, applied, migrate

# Seconds to wait for another process that is writing.
_PATIENCE = 30.0

# Calls that share a transaction at the most: a hundredth of a second's work.
_GROUP = 256

_SPLITS = ("top_and_random", "random_only", "top_only")

_T = TypeVar("_T")

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


class Database:
    """A run's `run.sqlite`; unless it is opened read-only, made or brought to this version.

    Threads may share it. Read-only, nothing is written: where there is no file, it is read as an
    empty one, and one of an older version is brought to this one in memory.

    Args:
        path: of the file.
        read_only: also serves a run in a place that can't be written.

    Raises:
        RunError: the file is no such database, is from a newer fastexplain, or can't be written.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self._path = Path(path)
        self._read_only = read_only
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._writer: _Writer | None = None
        self._closed = False
        with self._errors():
            self._connection()

    def close(self) -> None:
        """Finish what `write` was handed, and close the file."""
        self._closed = True
        if self._writer is not None:
            self._writer.finish()
        for sqlite in self._opened:
            sqlite.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def write(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What a function that writes returns, once that is stored.

        It runs in the thread that writes, in one transaction with others; one that fails leaves
        the others be. It runs even if the caller is cancelled meanwhile.

        Raises:
            RunError: the database can't be written.
        """
        if self._closed:
            raise RunError(f"the database {self._path} is closed")
        if self._writer is None:
            self._writer = _Writer(self)
        return await asyncio.wrap_future(self._writer.add(function, arguments))

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

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        with self._errors():
            return self._connection().execute(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed on what it gives is kept, or nothing; a part of an outer one."""
        with self._errors():
            sqlite = self._connection()
            inner = sqlite.in_transaction
            sqlite.execute("SAVEPOINT inner" if inner else "BEGIN IMMEDIATE")
            try:
                yield sqlite
                sqlite.execute("RELEASE inner" if inner else "COMMIT")
            except BaseException:
                if sqlite.in_transaction:  # SQLite has ended it itself where a disk is full
                    sqlite.execute("ROLLBACK TO inner" if inner else "ROLLBACK")
                    if inner:
                        sqlite.execute("RELEASE inner")
                raise

    def _read(self, rest: str, values: tuple[Any, ...]) -> list[StoredExplanation]:
        return [_explanation(row) for row in self.query(_SELECT + rest, values)]

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found = getattr(self._local, "sqlite", None)
        if found is None:
            found = self._local.sqlite = self._open()
            self._opened.append(found)
        return found

    def _open(self) -> sqlite3.Connection:
        # Transactions are begun by hand: see `transaction`. `close` closes all threads' ones.
        options: dict[str, Any] = {
            "timeout": _PATIENCE, "isolation_level": None, "check_same_thread": False,
        }  # fmt: skip
        if not self._read_only:
            sqlite = sqlite3.connect(self._path, **options)
        elif self._path.exists():
            # Where no lock can be taken, nothing can be written either: it is read as it stands.
            # Not beside a write-ahead log: others may be writing, and what is in it counts too.
            log = self._path.with_name(f"{self._path.name}-wal")
            alone = not os.access(self._path.parent, os.W_OK) and not log.exists()
            mode = "immutable=1" if alone else "mode=ro"
            sqlite = sqlite3.connect(f"{self._path.resolve().as_uri()}?{mode}", uri=True, **options)
        else:
            sqlite = sqlite3.connect(":memory:", **options)
        try:
            if self._read_only and not self._is_current(sqlite):
                copy = sqlite3.connect(":memory:", **options)
                sqlite.backup(copy)
                sqlite.close()
                sqlite = copy
                migrate(sqlite)
            elif not self._read_only:
                self._prepare(sqlite)
        except BaseException:
            sqlite.close()
            raise
        return sqlite

    def _prepare(self, sqlite: sqlite3.Connection) -> None:
        sqlite.execute("PRAGMA journal_mode = WAL")
        # A commit then survives the process, if not a power cut, at a fraction of the time.
        sqlite.execute("PRAGMA synchronous = NORMAL")
        if not self._is_current(sqlite):
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                if not self._is_current(sqlite):  # nobody else can be migrating it now
                    migrate(sqlite)
                sqlite.execute("COMMIT")
            except BaseException:
                sqlite.execute("ROLLBACK")
                raise
        sqlite.execute("PRAGMA foreign_keys = ON")

    def _is_current(self, sqlite: sqlite3.Connection) -> bool:
        """Whether all migrations were applied. Raises RunError if there are newer ones."""
        done = applied(sqlite)
        if not set(done) <= MIGRATIONS.keys():
            raise RunError(f"{self._path} is from a newer fastexplain; update this one")
        return len(done) == len(MIGRATIONS)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(f"the database {self._path} can't be used: {error}") from error


class _Writer:
    """One thread that runs calls which write, as many as have come in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._thread.start()

    def add(self, function: Callable[..., _T], arguments: tuple[Any, ...]) -> Future[_T]:
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()  # so that a caller's end does not cancel it
        self._calls.put((future, function, arguments))
        return future

    def finish(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._calls.get()) is not None:
            calls = [first]
            ended = False
            while len(calls) < _GROUP and not self._calls.empty():
                call = self._calls.get()
                if call is None:
                    ended = True
                    break
                calls.append(call)
            self._write(calls)
            if ended:
                return

    def _write(self, calls: list[_Call]) -> None:
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with self._database.transaction() as sqlite:
                for _, function, arguments in calls:
                    try:
                        with self._database.transaction():
                            outcomes.append((function(*arguments), None))
                    except Exception as error:
                        if not sqlite.in_transaction:  # SQLite has ended it itself
                            raise
                        outcomes.append((None, error))
        except Exception as error:  # the transaction was not kept
            outcomes = [(None, error)] * len(calls)
        for (future, *_), (result, failed) in zip(calls, outcomes, strict=True):
            if failed is None:
                future.set_result(result)
            else:
                future.set_exception(failed)


# What is to be called, and the future that gets what it returns.
_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


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
