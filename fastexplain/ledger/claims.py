"""Which requests are in flight, in whatever process: locks that end with their process.

A request is a byte of a file beside the run's database, at an offset by the hash of its name; who
asks it holds a lock on that byte. The system drops a lock with its process, so nothing is left of
one that was killed. Within a process such locks do not exclude each other, and to close a file
drops all that the process has on it: there, calls on one run share a file and a set of names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from hashlib import blake2b
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two commands may ask the same
    fcntl = None  # type: ignore[assignment]

# What a system says of a lock that another process holds.
_HELD = (errno.EAGAIN, errno.EACCES)


class _File:
    """A file of locks, and what this process has claimed by it."""

    def __init__(self, path: Path) -> None:
        self.names: set[str] = set()
        self._path = path
        self._file: int | None = None

    def lock(self, name: str) -> bool:
        """Whether no other process has a name; True where the file system has no locks."""
        if fcntl is None:
            return True
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                weakref.finalize(self, os.close, self._file)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(name))
        except OSError as error:
            return error.errno not in _HELD
        return True

    def unlock(self, name: str) -> None:
        if fcntl is not None and self._file is not None:
            with contextlib.suppress(OSError):  # there are no locks
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(name))


_files: weakref.WeakValueDictionary[Path, _File] = weakref.WeakValueDictionary()
_guard = threading.Lock()  # of `_files` and of all their names


class Claims:
    """Claims on names.

    Args:
        path: of the file, which is made where it is missing and stays; None: all claims succeed.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: _File | None = None
        if path is not None:
            with _guard:
                self._file = _files.setdefault(path.resolve(), _File(path))

    def claim(self, name: str) -> bool:
        """Whether a name is now the caller's; False while somebody else has it."""
        if self._file is None:
            return True
        with _guard:
            if name in self._file.names or not self._file.lock(name):
                return False
            self._file.names.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a name up that was claimed."""
        if self._file is not None:
            with _guard:
                self._file.unlock(name)
                self._file.names.discard(name)


def _offset(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
