"""A run's SQLite file: transactions in a connection for each thread, and one thread that writes.

`Connections.write` hands a call to the thread that writes, which puts all calls that have come
meanwhile into one transaction: an event loop does not wait for the disk, and a thousand answers a
second take a few dozen transactions.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from fastexplain.errors import RunError, UsageError
from fastexplain.run.migrations import migrate
from fastexplain.run.readers import Readers, connect, is_current, refuse_programs
from fastexplain.run.rows import whole

# Calls that share a transaction at the most: a hundredth of a second's work.
_GROUP = 256

_T = TypeVar("_T")


class Connections:
    """A database; unless it is opened read-only, made or brought to this version.

    Threads may share it. Read-only, nothing is written, and it may stay open: every statement sees
    what others have committed before; see `Readers`.

    Args:
        path: of the file.
        read_only: also serves a run in a place that can't be written.

    Raises:
        RunError: the file is no such database, is from a newer fastexplain, or can't be written.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self._path = Path(path)
        self._readers = Readers(self._path) if read_only else None
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._calls: collections.deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]
        self._calls = collections.deque()
        self._thread = ThreadPoolExecutor(1, "database")  # starts with the first call
        self._closed = False
        with self._errors(), self._reading():
            pass

    def close(self) -> None:
        """Finish what `write` was handed, and close the file."""
        self._closed = True
        self._thread.shutdown()
        for sqlite in self._opened:
            sqlite.close()
        if self._readers is not None:
            self._readers.close()

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
        with self._errors(), self._reading() as sqlite:
            return sqlite.execute(statement, values).fetchall()

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
        if self._readers is not None:
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

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement."""
        if self._readers is None:
            yield self._connection()  # in whose transaction this thread may be
            return
        with self._readers.connection() as sqlite:
            yield sqlite

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection, to write."""
        found = getattr(self._local, "sqlite", None)
        if found is None:
            found = self._local.sqlite = self._open()
            self._opened.append(found)
        return found

    def _open(self) -> sqlite3.Connection:
        sqlite = connect(self._path)
        try:
            refuse_programs(sqlite, self._path)
            self._prepare(sqlite)
        except BaseException as error:
            sqlite.close()
            lacking = not os.access(self._path.parent, os.W_OK)
            if isinstance(error, sqlite3.OperationalError) and lacking:
                raise RunError(
                    f"the database {self._path} can't be written ({error}); copy the run to where "
                    "you may write"
                ) from error
            raise
        return sqlite

    def _prepare(self, sqlite: sqlite3.Connection) -> None:
        # All triggers are ours (`refuse_programs`), and write to a virtual table, which SQLite up
        # to 3.40 at least lets only a trusted schema do.
        sqlite.execute("PRAGMA trusted_schema = ON")
        sqlite.execute("PRAGMA journal_mode = WAL")
        # A commit then survives the process, if not a power cut, at a fraction of the time.
        sqlite.execute("PRAGMA synchronous = NORMAL")
        if not is_current(sqlite, self._path):
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                if not is_current(sqlite, self._path):  # nobody else can be migrating it now
                    migrate(sqlite)
                sqlite.execute("COMMIT")
            except BaseException:
                sqlite.execute("ROLLBACK")
                raise
        sqlite.execute("PRAGMA foreign_keys = ON")

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
