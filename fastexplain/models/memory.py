"""How this process's memory is handed out; for programs that own their process."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, until it ends, where glibc hands it out.

    glibc would give large arrays back to the system, which clears each page again when it is next
    used: 77,000 pages a batch for eight layers of SmolLM2, and 8% of the sweep's processor time.
    There is no call that says what is set, so nothing could put it back: the library leaves it
    alone, and the command line calls this once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never
