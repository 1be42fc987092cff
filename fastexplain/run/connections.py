"""A run's SQLite file: a connection for each thread, transactions, and one thread that writes.

`Connections.write` hands a call to the thread that writes, which puts all calls that have come
meanwhile into one transaction: an event loop does not wait for the disk, and a thousand answers a
second take a few dozen transactions.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from fastexplain.errors import RunError, UsageError
from fastexplain.run.migrations import MIGRATIONS, applied, migrate
from fastexplain.run.rows import define, whole

# Seconds to wait for another process that is writing.
_PATIENCE = 30.0

# Calls that share a transaction at the most: a hundredth of a second's work.
_GROUP = 256

_T = TypeVar("_T")

# What a database may run when another statement is run.
_PROGRAMS = ("CREATE TRIGGER", "CREATE VIEW", "CREATE VIRTUAL TABLE")


def _connect(database: Path | str) -> sqlite3.Connection:
    """A connection that trusts nothing in the database's schema; texts that are URIs are taken so.

    Transactions are begun by hand: see `Connections.transaction`; `close` is for all threads.
    """
    sqlite = sqlite3.connect(
        database,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        uri=isinstance(database, str),
    )
    sqlite.execute("PRAGMA trusted_schema = OFF")
    define(sqlite)
    return sqlite


class Connections:
    """A database; unless it is opened read-only, made or brought to this version.

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
        self._calls: collections.deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]
        self._calls = collections.deque()
        self._thread = ThreadPoolExecutor(1, "database")  # starts with the first call
        self._closed = False
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        with self._errors():
            self._connection()

    def close(self) -> None:
        """Finish what `write` was handed, and close the file."""
        self._closed = True
        self._thread.shutdown()
        for sqlite in self._opened:
            sqlite.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()  # so that a caller's end does not cancel it
        self._calls.append((future, function, arguments))
        self._thread.submit(self._write_calls)
        return await asyncio.wrap_future(future)

    def _write_calls(self) -> None:
        """Run the calls that came since the last turn, in the thread that writes."""
        calls = [self._calls.popleft() for _ in range(min(len(self._calls), _GROUP))]
        if not calls:
            return
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with self.transaction() as sqlite:
                for _, function, arguments in calls:
                    try:
                        with self.transaction():
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

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        with self._errors():
            return self._connection().execute(statement, values).fetchall()

    def stored(
        self, table: str, columns: str, condition: str, values: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Columns of the rows of one table that meet a condition, which may go on behind it.

        Raises:
            RunError: one of the rows is not what was stored.
        """
        rows = self.query(
            f"SELECT {columns}, {whole(table)} FROM {table} WHERE {condition}", values
        )
        self.check_whole(table, rows)
        return [row[:-1] for row in rows]

    def check_whole(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Raise RunError unless the last column of all rows says that they are what was stored."""
        if not all(row[-1] for row in rows):
            raise RunError(
                f"the database {self._path} is damaged: a row of its {table} is not what was "
                "stored; copy the run again"
            )

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """For what is made of rows: where that fails, they are not what this package writes."""
        try:
            yield
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise RunError(
                f"the database {self._path} is damaged: it has a row that can't be read "
                f"({type(error).__name__}: {' '.join(str(error).split()):.100})"
            ) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed on what it gives is kept, or nothing; a part of an outer one."""
        if self._read_only:
            raise RunError(f"the database {self._path} is opened read-only")
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

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found = getattr(self._local, "sqlite", None)
        if found is None:
            found = self._local.sqlite = self._open()
            self._opened.append(found)
        return found

    def _open(self) -> sqlite3.Connection:
        sqlite = self._connect_to_read() if self._read_only else _connect(self._path)
        try:
            self._refuse_programs(sqlite)
            if self._read_only and not self._is_current(sqlite):
                copy = _connect(":memory:")
                sqlite.backup(copy)
                sqlite.close()
                sqlite = copy
                migrate(sqlite)
            elif not self._read_only:
                self._prepare(sqlite)
        except BaseException as error:
            sqlite.close()
            lacking = not (self._read_only or os.access(self._path.parent, os.W_OK))
            if isinstance(error, sqlite3.OperationalError) and lacking:
                raise RunError(
                    f"the database {self._path} can't be written ({error}); copy the run to where "
                    "you may write"
                ) from error
            raise
        return sqlite

    def _connect_to_read(self) -> sqlite3.Connection:
        """A connection to what there is; it also serves where nothing can be written."""
        if not self._path.exists():
            return _connect(":memory:")
        address = self._path.resolve().as_uri()
        log = self._path.with_name(f"{self._path.name}-wal")
        writable = os.access(self._path.parent, os.W_OK)
        # Where no lock can be taken, nothing can be written either: it is read as it stands.
        # Not beside a write-ahead log: others may be writing, and what is in it counts too.
        if not writable and not log.exists():
            return _connect(f"{address}?immutable=1")
        sqlite = _connect(f"{address}?mode=ro")
        try:
            sqlite.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError:
            sqlite.close()
            if writable or not log.exists():
                raise
            # A writer was killed and left its log, which SQLite reads only beside an index that it
            # can write: so in a copy of both.
            self._copy = self._copy or tempfile.TemporaryDirectory()
            for file in (self._path, log):
                shutil.copyfile(file, Path(self._copy.name) / file.name)
            sqlite = _connect(Path(self._copy.name) / self._path.name)
        return sqlite

    def _refuse_programs(self, sqlite: sqlite3.Connection) -> None:
        """Raise RunError where a database has what runs by itself and is not of our making."""
        known = {
            statement
            for statements in MIGRATIONS.values()
            for statement in statements
            if statement.startswith(_PROGRAMS)
        }
        rows = sqlite.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        for kind, name, statement in rows:
            if statement.startswith(_PROGRAMS) and statement not in known:
                raise RunError(
                    f"the database {self._path} has a {kind} '{name}' that fastexplain did not "
                    "make; it is not opened"
                )

    def _prepare(self, sqlite: sqlite3.Connection) -> None:
        # All triggers are ours (`_refuse_programs`), and write to a virtual table, which SQLite up
        # to 3.40 at least lets only a trusted schema do.
        sqlite.execute("PRAGMA trusted_schema = ON")
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
        except (sqlite3.Error, UnicodeDecodeError) as error:  # of a message about a damaged file
            seen = " ".join(str(error).split())  # it may quote the schema
            raise RunError(f"the database {self._path} can't be used: {seen:.300}") from error
        except OverflowError as error:
            raise UsageError("a number is larger than any in a database, 2^63") from error
        except UnicodeEncodeError as error:
            raise RunError(
                f"{error.object!r} holds half of a character, which {self._path} can't take"
            ) from error
