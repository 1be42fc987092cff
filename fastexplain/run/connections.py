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
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from fastexplain.errors import RunError, UsageError
from fastexplain.run.migrations import MIGRATIONS, applied, migrate

# Seconds to wait for another process that is writing.
_PATIENCE = 30.0

# Calls that share a transaction at the most: a hundredth of a second's work.
_GROUP = 256

_T = TypeVar("_T")


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
        with self._errors():
            self._connection()

    def close(self) -> None:
        """Finish what `write` was handed, and close the file."""
        self._closed = True
        self._thread.shutdown()
        for sqlite in self._opened:
            sqlite.close()

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
        except OverflowError as error:
            raise UsageError("a number is larger than any in a database, 2^63") from error
        except UnicodeEncodeError as error:
            raise RunError(
                f"{error.object!r} holds half of a character, which {self._path} can't take"
            ) from error
