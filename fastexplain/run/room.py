"""Room on the disk that is kept for what a sweep will write at its end.

A file as large as all that is to come is allocated at the start, without being written. It shrinks
before each file is written, so that a disk that others fill meanwhile has room for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from pathlib import Path

# Bytes that a file takes beside its arrays, for its header, its hashes and as blocks of the disk;
# 2% are added for the last two.
_OVERHEAD = 2**16


class Room:
    """Room that is kept as a file; where that can't be, a warning says what is lacking.

    Args:
        file: to allocate; its folder must exist.
        size: bytes that will be written.
        files: in how many files.
    """

    def __init__(self, file: Path, size: int, files: int) -> None:
        self._file = file
        size += size // 50 + files * _OVERHEAD
        self._left = size
        free = shutil.disk_usage(file.parent).free
        if free >= size:
            try:
                self._allocate(size)
            except OSError:  # a quota, or a file system that can't allocate
                file.unlink(missing_ok=True)
            else:
                return
            free = shutil.disk_usage(file.parent).free
        if free < size:
            warnings.warn(
                f"the run needs about {size / 1e9:,.3g} GB in {file.parent.parent}, where "
                f"{free / 1e9:,.3g} GB are free; make room before the sweep ends",
                stacklevel=2,
            )

    def use(self, size: int) -> None:
        """Give some of it up, for a file of so many bytes that is written now."""
        self._left = max(self._left - size - size // 50 - _OVERHEAD, 0)
        with contextlib.suppress(OSError):  # there is none
            os.truncate(self._file, min(self._left, self._file.stat().st_size))

    def close(self) -> None:
        """Give all of it up."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _allocate(self, size: int) -> None:
        allocate = getattr(os, "posix_fallocate", None)  # not on macOS and Windows
        if allocate is None or size == 0:
            return
        with self._file.open("wb") as handle:
            allocate(handle.fileno(), 0, size)
