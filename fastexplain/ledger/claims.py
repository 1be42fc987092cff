"""Which requests are in flight, in whatever process: locks that end with their process.

A request is a byte of a file beside the run's database, at an offset by the hash of its name; who
asks it holds a lock on that byte. The system drops a lock with its process, so nothing is left of
one that was killed. Within a process these locks do not exclude each other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from hashlib import blake2b
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is claimed, and two commands may ask the same
    fcntl = None  # type: ignore[assignment]

# What a system says of a lock that another process holds.
_HELD = (errno.EAGAIN, errno.EACCES)


class Claims:
    """Claims on names.

    Args:
        path: of the file, which is made where it is missing and stays; None: all claims succeed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None

    def claim(self, name: str) -> bool:
        """Whether a name is now this process's; False while another process has it.

        Where the file system has no locks, each process has all names.
        """
        if fcntl is None or self._path is None:
            return True
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                weakref.finalize(self, os.close, self._file)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(name))
        except OSError as error:
            return error.errno not in _HELD
        return True

    def release(self, name: str) -> None:
        """Give a name up that was claimed."""
        if fcntl is not None and self._file is not None:
            with contextlib.suppress(OSError):  # there are no locks
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(name))


def _offset(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
