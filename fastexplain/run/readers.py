"""Connections that only read a run's SQLite file: they stay open, and are never stale.

1. A connection in a place that can be written sees what others commit, by SQLite's own means. The
   others are of a copy, in memory or in a folder, or are told that nothing changes.
2. So a connection is used again only while the files are those that it was opened on. Any commit
   changes them; then it is opened, and looked at, anew, as is a file put in another's place.
3. Whoever reads takes a connection for one statement, alone: there are as many as threads that read
   at the same time, of which a few are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from fastexplain.errors import RunError
from fastexplain.run.migrations import MIGRATIONS, applied, migrate
from fastexplain.run.rows import define

# Seconds to wait for another process that is writing.
_PATIENCE = 30.0

_KEPT = 4
"""Connections that stay open. Of more threads only as many as there are cores get on."""

# What a database may run when another statement is run.
_PROGRAMS = ("CREATE TRIGGER", "CREATE VIEW", "CREATE VIRTUAL TABLE")


def file_state(path: Path) -> tuple[tuple[int, ...], ...]:
    """What changes with any commit to an SQLite file, and where another file is put in its place.

    An empty log counts as none: it comes and goes with who reads.
    """
    found = []
    for name in (path, f"{path}-wal"):
        try:
            status = os.stat(name)  # noqa: PTH116
        except OSError:
            continue
        if status.st_size:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def connect(database: Path | str) -> sqlite3.Connection:
    """A connection that trusts nothing in the database's schema; texts that are URIs are taken so.

    Transactions are begun by hand; it may be used by any thread, one at a time.
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


def refuse_programs(sqlite: sqlite3.Connection, path: Path) -> None:
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
                f"the database {path} has a {kind} '{name}' that fastexplain did not make; it is "
                "not opened"
            )


def is_current(sqlite: sqlite3.Connection, path: Path) -> bool:
    """Whether all migrations were applied. Raises RunError if there are newer ones."""
    done = applied(sqlite)
    if not set(done) <= MIGRATIONS.keys():
        raise RunError(f"{path} is from a newer fastexplain; update this one")
    return len(done) == len(MIGRATIONS)


class Readers:
    """A file's connections for reading; threads may share them.

    Where there is no file, it is read as an empty one, and one of an older version is brought to
    this one in memory. It also serves where nothing can be written.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[_Reader] = []
        self._closed = False

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """One for a statement of which all rows are fetched.

        Raises:
            RunError: it is from a newer fastexplain, or has programs that are not ours.
            sqlite3.Error: it is no database, or damaged.
        """
        reader = self._take()
        try:
            yield reader.sqlite
        except BaseException:
            reader.close()
            raise
        with self._lock:
            kept = not self._closed and len(self._idle) < _KEPT
            if kept:
                self._idle.append(reader)
        if not kept:
            reader.close()

    def close(self) -> None:
        """Close all; one that is in use is closed by whoever has it."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()

    def _take(self) -> _Reader:
        files = file_state(self._path)
        while True:
            with self._lock:
                if not self._idle:
                    break
                reader = self._idle.pop()
            if reader.files == files:
                return reader
            reader.close()
        return _Reader(self._path, files)


class _Reader:
    """A connection, and the files as they were just before it was opened."""

    def __init__(self, path: Path, files: tuple[tuple[int, ...], ...]) -> None:
        self.files = files
        self._path = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.sqlite = self._connect()
        try:
            refuse_programs(self.sqlite, path)
            if not is_current(self.sqlite, path):
                copy = connect(":memory:")
                self.sqlite.backup(copy)
                self.sqlite.close()
                self.sqlite = copy
                migrate(self.sqlite)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.sqlite.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _connect(self) -> sqlite3.Connection:
        """A connection to what there is."""
        path = self._path
        if not path.exists():
            return connect(":memory:")
        address = path.resolve().as_uri()
        log = path.with_name(f"{path.name}-wal")
        writable = os.access(path.parent, os.W_OK)
        # Where no lock can be taken, nothing can be written either: it is read as it stands.
        # Not beside a write-ahead log: others may be writing, and what is in it counts too.
        if not writable and not log.exists():
            return connect(f"{address}?immutable=1")
        sqlite = connect(f"{address}?mode=ro")
        try:
            sqlite.execute("SELECT 1 FROM sqlite_master")
        except BaseException as error:
            sqlite.close()
            if not isinstance(error, sqlite3.OperationalError) or writable or not log.exists():
                raise
            # A writer was killed and left its log, which SQLite reads only beside an index that it
            # can write: so in a copy of both.
            self._folder = tempfile.TemporaryDirectory()
            for file in (path, log):
                shutil.copyfile(file, Path(self._folder.name) / file.name)
            sqlite = connect(Path(self._folder.name) / path.name)
        return sqlite
