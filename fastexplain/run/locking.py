"""One writer a directory: a lock on a file in it, which the system takes back when its owner dies.

On POSIX systems it is `flock`, elsewhere `msvcrt.locking`. A network file system that has no locks
refuses both: then nothing is locked, and the check before the manifest is what remains.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from fastexplain.errors import RunError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class DirectoryLock:
    """The lock of a directory, held until it is closed.

    Args:
        path: of the directory.
        file: the file in it that is locked; its folder must exist.
        writer: what writes to it, for the error.

    Raises:
        RunError: another process has it, or the file can't be made.
    """

    def __init__(self, path: Path, file: Path, writer: str = "sweep") -> None:
        self._file = file
        try:
            self._handle = file.open("a+b")
        except OSError as error:
            raise RunError(f"can't write to {path}: {error.strerror}") from error
        try:
            _lock(self._handle.fileno())
        except (BlockingIOError, PermissionError) as error:
            self._handle.close()
            raise RunError(
                f"another {writer} is writing to {path}; wait until it ends, or choose another "
                "directory"
            ) from error
        except OSError:
            pass  # no locks here

    def is_there(self) -> bool:
        """Whether the file that is locked is still the one in the directory."""
        try:
            return os.path.samestat(os.fstat(self._handle.fileno()), self._file.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._handle.close()


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
