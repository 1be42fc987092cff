"""What works in the background gives way to what answers."""

from __future__ import annotations

import os
import sys
import threading

_NICE = 10
"""A tenth of the share of others that want the same core; all of one that nobody wants."""


def give_way() -> None:
    """Lower the priority of this thread, and of those that it begins from now on, for good.

    Linux alone has priorities of threads; elsewhere nothing changes.
    """
    if sys.platform == "linux":
        own = threading.get_native_id()
        # Only root may raise it again.
        lower = max(os.getpriority(os.PRIO_PROCESS, own), _NICE)
        os.setpriority(os.PRIO_PROCESS, own, lower)
