"""What works in the background gives way to what answers."""

from __future__ import annotations

import os
import sys
import threading

_NICE = 10
"""A tenth of the share of others that want the same core; all of one that nobody wants."""


def give_way() -> None:
    """Lower the priority of this thread, and of those that it begins, for good.

    Linux alone has priorities of threads; elsewhere nothing changes.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
